"""The journal: phases once, damage found, torn lines dropped, equal content in equal bytes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftlm_jax.raft.journal import (
    RESULT,
    Journal,
    PartFile,
    array_bytes,
    arrays_of,
    bytes_of,
    lines_of,
    rows_of_lines,
    text_of,
)
from fftlm_jax.runtime.errors import CheckpointError


class Maker:
    """Counts how often it was asked."""

    def __init__(self, content=b"x"):
        self.content, self.calls = content, 0

    def __call__(self):
        self.calls += 1
        return self.content


def test_a_phase_is_made_once(tmp_path):
    make = Maker()
    for _ in range(3):
        assert Journal(tmp_path).once(1, "samples.jsonl", make) == b"x"
    assert make.calls == 1


def test_a_file_that_is_not_listed_is_made_again(tmp_path):
    journal, make = Journal(tmp_path), Maker(b"whole")
    journal.folder(1).mkdir(parents=True)
    (journal.folder(1) / "samples.jsonl").write_bytes(b"who")  # Written before phases.json could say so.
    assert journal.once(1, "samples.jsonl", make) == b"whole" and make.calls == 1


@pytest.mark.parametrize("damage", ("flip", "cut", "remove"))
def test_a_damaged_phase_of_a_cycle_under_way_is_made_again(tmp_path, damage):
    journal, make = Journal(tmp_path), Maker(b"content")
    journal.once(1, "kept.jsonl", make)
    file = journal.folder(1) / "kept.jsonl"
    {"flip": lambda: file.write_bytes(b"cOntent"), "cut": lambda: file.write_bytes(b"con"), "remove": file.unlink}[
        damage
    ]()
    assert journal.once(1, "kept.jsonl", make) == b"content" and make.calls == 2


def test_a_damaged_finished_cycle_is_refused_by_name(tmp_path):
    journal = Journal(tmp_path)
    for cycle in range(2):
        journal.once(cycle, "weights.npz", Maker())
        journal.once(cycle, RESULT, Maker(b"{}"))
    assert journal.finished() == 2
    (journal.folder(1) / "weights.npz").write_bytes(b"y")
    with pytest.raises(CheckpointError, match=r"0001/weights.npz is missing or was changed"):
        journal.finished()


def test_cycles_are_finished_up_to_the_first_that_is_not(tmp_path):
    journal = Journal(tmp_path)
    for cycle in (0, 1, 3):
        journal.once(cycle, RESULT, Maker(b"{}"))
    assert journal.finished() == 2


def test_unreadable_phases_are_refused(tmp_path):
    journal = Journal(tmp_path)
    journal.once(0, RESULT, Maker(b"{}"))
    (journal.folder(0) / "phases.json").write_text("[]")
    with pytest.raises(CheckpointError, match="phases.json cannot be read"):
        journal.finished()


@given(st.lists(st.lists(st.binary(max_size=12), max_size=4), max_size=5), st.integers(0, 200))
def test_a_torn_part_file_gives_its_whole_lines(tmp_path_factory, batches, cut):
    file = tmp_path_factory.mktemp("part") / "samples.part.jsonl"
    part = PartFile(file)
    part.restart([])
    for batch in batches:
        part.append(map(text_of, batch))
    rows = [text_of(row) for batch in batches for row in batch]
    assert part.read() == rows
    content = file.read_bytes()
    file.write_bytes(content[: max(0, len(content) - cut)])
    found = part.read()
    assert found == rows[: len(found)]
    assert len(found) == content[: max(0, len(content) - cut)].count(b"\n")


@given(st.binary())
def test_any_bytes_survive_as_text(data):
    assert bytes_of(json.loads(json.dumps(text_of(data)))) == data
    assert rows_of_lines(lines_of([text_of(data), 3])) == [text_of(data), 3]


def test_arrays_come_back_and_their_file_depends_on_nothing_else():
    arrays = {"a/b:a": np.arange(6, dtype=np.float32).reshape(2, 3), "c": np.int32(7)}
    content = array_bytes(arrays)
    assert content == array_bytes(dict(reversed(arrays.items())))
    found = arrays_of(content)
    assert set(found) == set(arrays) and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert found["a/b:a"].dtype == np.float32


def test_damaged_arrays_are_refused_and_objects_are_never_loaded():
    content = bytearray(array_bytes({"a": np.arange(100.0)}))
    content[len(content) // 2] ^= 1
    with pytest.raises(ValueError, match="not a file of arrays"):
        arrays_of(bytes(content))
    with pytest.raises(ValueError):
        array_bytes({"a": np.array([object()], dtype=object)})
