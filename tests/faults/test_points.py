"""Rows 3 and 8: whatever place a run dies at, the same command ends in the same state; and every place is real.

Death is an exception here, so that one process serves for all; `test_processes.py` kills real ones. Fine-tuning dies in
`tests/raft/test_loop.py`.
"""

import pytest

from fftlm_jax.checkpoints.saved_step import step_numbers, temporary_folders
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.training import run
from tests.faults.runs import assert_equal_runs, records_of, short_values
from tests.raft.raft_run import PHASES, place_of
from tests.tiny import hash_of

# Deaths of one run, each later than what is saved by then: where, and the steps that are on disk then.
DEATHS = (
    ("before_manifest:5", [5]),  # A first save cut short: it starts over.
    ("mid_step:9", [5]),
    ("before_arrays:10", [5]),
    ("after_arrays:10", [5, 10]),
    ("in_compile:17", [5, 10]),
    ("before_raise_save:12", [5, 10]),
    ("before_manifest:15", [5, 10, 15]),
    ("after_manifest:15", [5, 10, 15]),
    ("during_deletion", [10, 15, 20]),
)


def die(workdir, place):
    faults.arm(f"stop@{place}")
    with pytest.raises(faults.Stopped):
        run(short_values(), workdir)
    assert not faults.armed(), place


def test_a_run_that_dies_at_every_place_ends_as_if_it_had_not(reference, tmp_path):
    for place, left in DEATHS:
        die(tmp_path, place)
        assert step_numbers(tmp_path / "checkpoints") == left, place
    assert [p.name for p in temporary_folders(tmp_path / "checkpoints")] == ["5.deleting"]
    assert sorted(p.name for p in (tmp_path / "quarantine").iterdir()) == ["10", "15", "5"]
    (tmp_path / "checkpoints" / "20" / "manifest.json").unlink()  # That one more save has to clean up.
    run(short_values(), tmp_path)
    assert_equal_runs(tmp_path, reference)


@pytest.mark.torture
@pytest.mark.parametrize("place", [place for place, _ in DEATHS])
def test_so_does_one_that_dies_once(reference, tmp_path, place):
    die(tmp_path, place)
    run(short_values(), tmp_path)
    assert hash_of(tmp_path) == hash_of(reference) and records_of(tmp_path) == records_of(reference)


def test_every_place_is_tried():
    """Here, or where fine-tuning dies in each of PHASES."""
    tried = {place.split(":")[0] for place, _ in DEATHS} | {place_of(name) for _, name in PHASES}
    assert tried == set(faults.PLACES)


@pytest.mark.parametrize(
    "text", ("kill", "kill@", "kill@nowhere", "explode@mid_step", "kill@mid_step:", "kill@mid_step:x", "kill@mid_step,")
)
def test_a_name_that_does_not_exist_is_refused(text):
    with pytest.raises(UsageError, match="is not action@place"):
        faults.arm(text)


def test_an_entry_acts_once_and_where_it_says():
    faults.arm("stop@mid_step:3,full@mid_step")
    with pytest.raises(OSError, match="No space left"):
        faults.point("mid_step", 2)
    faults.point("mid_step", 2)
    faults.point("after_arrays", 3)
    with pytest.raises(faults.Stopped):
        faults.point("mid_step", 3)
    faults.point("mid_step", 3)
