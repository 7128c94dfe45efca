"""Rows 13 and 36 in earnest, deselected unless asked for: `python -m pytest -n 0 -m torture tests/faults`.

A disk that is really full (a small tmpfs, where the system lets one be mounted), and a sweep whose trial is killed.
"""

import json
import subprocess
from pathlib import Path

import pytest

from experiments import soak, sweep
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import SaveError
from fftlm_jax.training import run
from tests.faults.runs import assert_equal_runs, short_values
from tests.tiny import hash_of

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3000)]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MB; what is put on it goes with the test."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Leaves not a byte."""
    with (disk / "ballast").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_disk_that_is_full_for_a_while(reference, small_disk, monkeypatch, capsys):
    """Full from step 8 to step 17: two saves fail, metrics are late, and in the end nothing is missing."""
    point = faults.point

    def pass_by(place, number):
        if (place, number) == ("mid_step", 8):
            fill(small_disk)
        if (place, number) == ("mid_step", 17):
            (small_disk / "ballast").unlink()
        point(place, number)

    monkeypatch.setattr(faults, "point", pass_by)
    run(short_values(), small_disk / "run")
    told = capsys.readouterr().out
    assert told.count("Training goes on; the next save is tried when it is due") == 2
    assert_equal_runs(small_disk / "run", reference)


def test_a_disk_that_stays_full(reference, small_disk, monkeypatch):
    monkeypatch.setattr(faults, "point", lambda *at: fill(small_disk) if at == ("mid_step", 8) else None)
    with pytest.raises(SaveError, match="step 20 could not be saved") as error:
        run(short_values(), small_disk / "run")
    assert error.value.exit_code == 6
    monkeypatch.undo()
    fill(small_disk)
    with pytest.raises(SaveError, match="No space left on device"):
        run(short_values(), small_disk / "run")
    (small_disk / "ballast").unlink()
    run(short_values(), small_disk / "run")
    assert hash_of(small_disk / "run") == hash_of(reference)


CONFIG_FILE = """
from tests.faults.runs import short_values

def get_config():
    return short_values()
"""


def test_a_killed_trial_of_a_sweep_is_resumed_and_the_others_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "config.py").write_text(CONFIG_FILE)
    options = [f"--config={tmp_path / 'config.py'}", "--seeds=0,1"]
    assert sweep.main([*options, f"--out={tmp_path / 'straight'}"]) == 0
    out = [*options, f"--out={tmp_path / 'killed'}"]
    assert sweep.main([*out, "--index=0"]) == 0
    before = (tmp_path / "killed" / "base-seed0" / "metrics.jsonl").stat().st_mtime_ns
    monkeypatch.setenv(faults.VARIABLE, "kill@before_manifest:10")
    assert sweep.main(out) == 1
    statuses = [t["status"] for t in json.loads((tmp_path / "killed" / "trials.json").read_text())]
    assert statuses == ["finished", "failed"]
    monkeypatch.delenv(faults.VARIABLE)
    assert sweep.main(out) == 0
    assert (tmp_path / "killed" / "base-seed0" / "metrics.jsonl").stat().st_mtime_ns == before
    for seed in (0, 1):
        assert_equal_runs(tmp_path / "killed" / f"base-seed{seed}", tmp_path / "straight" / f"base-seed{seed}")
    events = read_metrics(tmp_path / "killed" / "base-seed1" / "metrics.jsonl")
    assert [r["step"] for r in events if r.get("event") == "resumed"] == [5]


def test_a_short_soak(tmp_path, capsys):
    assert soak.main(["--kills=2", f"--out={tmp_path}", "--seed=3"]) == 0
    assert "equal, bit for bit" in capsys.readouterr().out
