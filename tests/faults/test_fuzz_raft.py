"""Schedules and the journal of fine-tuning, on any text and under any change of a byte."""

import io
import json
import random
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftlm_jax.raft.journal import KEPT, PLAN, RESULT, WEIGHTS, Journal, PartFile, array_bytes, arrays_of, lines_of
from fftlm_jax.raft.lr_yaml import from_yaml
from fftlm_jax.raft.raft_parts import with_yaml_text
from fftlm_jax.runtime.errors import CheckpointError, ConfigError
from tests.faults.fuzzing import JSON, fuzz
from tests.tiny import tiny

PIECES = (
    *("learning_rate", "base_learning_rate", "lr_decay_factor", "learning_rate_schedule", "cycle_1", "cycle_2"),
    *(": ", ":\n  ", "\n", "5e-5", "1e400", "-1", "[", "{", "}", "&a ", "*a", "!!int ", "!!float ", "!!bool ", '""'),
    *("!!timestamp ", "!!python/object:os.system ", "2001-99-99", "<<: ", "? ", "'", "\t", "\x1b", "\u202e", "#"),
)


@fuzz
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=10).map("".join)))
def test_any_text_as_a_schedule(text):
    try:
        schedule = from_yaml(text)
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 1500
    else:
        assert 0 < schedule(1) < float("inf")


BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    "text,why",
    (
        (BOMB, "written without references"),
        (f"learning_rate: &a {BOMB[7:18]}\nmin_lr: *a", "written without references"),
        ("[" * 65_000, "nested too deeply"),
        ("- " * 20 + "1", "nested too deeply"),
        ("learning_rate: " + "{a: " * 3000, "nested too deeply"),
        ("# " + "x" * 70_000 + "\nlearning_rate: 1e-5", "at most 65536 characters"),
        (f"learning_rate: {10**400}", "must be a finite number"),
        ("learning_rate: " + "[[[1, 2], 3], 4]", "must be a finite number"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("learning_rate: !!int ''", "not YAML that can be read"),
        ("learning_rate: !!bool x", "not YAML that can be read"),
        ('"a\\nb": 1', "is no key of a schedule"),
    ),
    ids=lambda value: value[:20].encode("unicode_escape").decode(),
)
def test_schedules_made_to_harm_get_one_sentence(text, why):
    with pytest.raises(ValueError, match=why) as error:
        from_yaml(text)
    assert str(error.value).isprintable() and len(str(error.value)) < 600


def test_a_schedule_file_is_read_up_to_a_size(tmp_path):
    for content, why in ((b"#" * 70_000, "it is longer than 65536 bytes"), (b"\xff\xfe", "it is no text")):
        (tmp_path / "lr.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=f"config.raft.lr_yaml: .* cannot be read .{why}"):
            with_yaml_text(tiny(raft__lr_yaml=str(tmp_path / "lr.yaml")))
    with pytest.raises(ConfigError, match="no regular file"):
        with_yaml_text(tiny(raft__lr_yaml="/dev/zero"))


CONTENTS = {
    PLAN: json.dumps({"cycle": 0, "parent": 0}).encode(),
    KEPT: lines_of([["1+1=", "2\n", True], ["2+2=", "4\n", True]]),
    WEIGHTS: array_bytes({"a": np.arange(4, dtype=np.float32)}),
    RESULT: b'{"cycle": 0}\n',
}


def two_cycles(folder):
    journal = Journal(folder)
    for cycle in range(2):
        for name, content in CONTENTS.items():
            journal.once(cycle, name, lambda content=content: content)
    return journal


def test_every_byte_of_a_finished_cycle_counts(tmp_path):
    """A changed file is refused by name; a changed list of phases takes cycles back to be done again, no more."""
    journal, rng = two_cycles(tmp_path), random.Random(0)
    for name in (*CONTENTS, "phases.json"):
        file = journal.folder(1) / name
        whole = file.read_bytes()
        for at in range(len(whole) - 1) if len(whole) <= 400 else rng.sample(range(len(whole) - 1), 150):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :])
            try:
                done = journal.finished()
            except CheckpointError as error:
                assert ("cycles/0001/" if name == "phases.json" else f"cycles/0001/{name}") in str(error)
            else:
                assert (name, done) == ("phases.json", 1)
        for cut in (0, 1, len(whole) // 2, len(whole) - 2):  # The last is a newline, without which JSON is whole.
            file.write_bytes(whole[:cut])
            with pytest.raises(CheckpointError, match="cycles/0001/"):
                journal.finished()
        file.write_bytes(whole)
    assert journal.finished() == 2


def test_a_changed_phase_under_way_is_as_it_was_or_made_again(tmp_path):
    journal, rng = two_cycles(tmp_path), random.Random(1)
    for at in rng.sample(range(len(CONTENTS[KEPT])), 20):
        content = bytearray(CONTENTS[KEPT])
        content[at] ^= rng.randrange(1, 256)
        (journal.folder(1) / KEPT).write_bytes(content)
        assert journal.once(1, KEPT, lambda: b"made again") == b"made again"
        (journal.folder(1) / KEPT).write_bytes(CONTENTS[KEPT])
        with pytest.raises(CheckpointError):  # The list says the other content by now.
            journal.read(1, KEPT)
        assert journal.once(1, KEPT, lambda: CONTENTS[KEPT]) == CONTENTS[KEPT]


@fuzz
@given(st.one_of(st.binary(max_size=40), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_list_of_phases(tmp_path, content):
    journal = Journal(tmp_path)
    journal.folder(0).mkdir(parents=True, exist_ok=True)
    (journal.folder(0) / "phases.json").write_bytes(content)
    try:
        assert journal.finished() == 0
    except CheckpointError as error:
        assert "cycles/0000" in str(error)


@pytest.mark.parametrize("name", ("../../secret", "/etc/hostname", "", ".."))
def test_a_list_of_phases_names_no_file_elsewhere(tmp_path, name):
    (tmp_path / "secret").write_text("x")
    journal = Journal(tmp_path / "run")
    journal.folder(0).mkdir(parents=True)
    (journal.folder(0) / "phases.json").write_text(json.dumps({RESULT: "0", name: "0"}))
    with pytest.raises(CheckpointError, match="phases.json cannot be read"):
        journal.finished()


@fuzz
@given(JSON)
def test_any_result_of_a_cycle(tmp_path_factory, value):
    journal = Journal(tmp_path_factory.mktemp("run"))
    journal.once(0, RESULT, lambda: json.dumps(value).encode())
    with pytest.raises(CheckpointError, match="result.json cannot be read"):
        journal.results()


def test_a_changed_byte_of_a_part_file_ends_it(tmp_path):
    rows = ["1+1=2\n", "\u00ff\u0000", "3", "4"]
    part, rng = PartFile(tmp_path / "samples.part.jsonl"), random.Random(0)
    part.restart(rows[:2])
    part.append(rows[2:])
    assert part.read() == rows
    whole = (tmp_path / "samples.part.jsonl").read_bytes()
    for at in range(len(whole)):
        changed = whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :]
        (tmp_path / "samples.part.jsonl").write_bytes(changed)
        found = part.read()
        assert found == rows[: len(found)] and len(found) <= whole[:at].count(b"\n"), at


@fuzz
@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 300))
def test_any_bytes_in_a_part_file_and_in_arrays(tmp_path, junk, at, cut):
    (tmp_path / "part").write_bytes(junk)
    assert PartFile(tmp_path / "part").read() == []
    for content in (junk, CONTENTS[WEIGHTS][:cut], CONTENTS[WEIGHTS][:at] + junk + CONTENTS[WEIGHTS][at + len(junk) :]):
        try:
            found = arrays_of(content)
        except ValueError as error:
            assert "not a file of arrays" in str(error)
        else:
            assert {name: array.tolist() for name, array in found.items()} == {"a": [0, 1, 2, 3]}


def test_every_byte_of_a_file_of_arrays_counts():
    whole, rng = CONTENTS[WEIGHTS], random.Random(0)
    for at in range(len(whole)):
        try:
            found = arrays_of(whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :])
        except ValueError:
            continue
        assert {name: array.tolist() for name, array in found.items()} == {"a": [0, 1, 2, 3]}, at


def npz(shape, data, compression):
    header, archive = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": "<f4"})
    with zipfile.ZipFile(archive, "w", compression) as file:
        file.writestr("a.npy", header.getvalue() + data)
    return archive.getvalue()


@pytest.mark.parametrize(
    "shape,data,compression",
    (((10**13,), bytes(16), 0), ((2**40, 2**40), bytes(16), 0), ((1 << 22,), bytes(1 << 24), 8), ((3,), bytes(16), 0)),
    ids=("terabytes", "more than can be counted", "compressed", "too few"),
)
def test_arrays_that_are_declared_larger_than_they_are(shape, data, compression):
    assert arrays_of(npz((4,), bytes(16), 0))["a"].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="not a file of arrays"):
        arrays_of(npz(shape, data, compression))
