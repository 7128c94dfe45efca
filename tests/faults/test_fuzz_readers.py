"""Readers of a run's files, on any bytes: what they say is a sentence or what was written, never a traceback."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftlm_jax.checkpoints.contents import require_training_host
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.saved_step import is_step_name, manifest_fault, read_host, read_metric
from fftlm_jax.doctor import diagnose
from fftlm_jax.doctor.evidence import read_stream
from fftlm_jax.doctor.text_log import read_text_log
from fftlm_jax.recording.history import History
from fftlm_jax.recording.metrics import read_metrics, read_samples, sample_entry
from fftlm_jax.runtime.errors import CheckpointError, UsageError
from fftlm_jax.runtime.untrusted import parse_json, printable, shown
from tests.faults.fuzzing import JSON, NUMBERS, fuzz

CONTENTS = st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode()))


@fuzz
@given(
    st.one_of(
        CONTENTS,
        JSON.map(lambda value: json.dumps({"files": value}).encode() + b"\n"),
        st.dictionaries(
            st.one_of(st.text(max_size=6), st.sampled_from(("a", "../b", "/etc/hostname", "a/\0", "\ud800", "."))),
            st.one_of(JSON, st.fixed_dictionaries({"bytes": JSON, "sha256": JSON})),
            max_size=3,
        ).map(lambda files: json.dumps({"files": files}).encode() + b"\n"),
    )
)
def test_any_manifest(tmp_path, content):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "manifest.json").write_bytes(content)
    fault = manifest_fault(tmp_path)
    assert isinstance(fault, str) and fault.isprintable() and len(fault) < 300, "no such manifest can be right"


@pytest.mark.parametrize("content", (b"[" * 100_000 + b"}\n", b'{"files": {}}\n', b'{"files": {"a": {"bytes": 7}}}\n'))
def test_manifests_made_to_mislead(tmp_path, content):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "manifest.json").write_bytes(content)
    assert manifest_fault(tmp_path) is not None


def test_what_a_desktop_leaves_behind_harms_no_step(tmp_path):
    (tmp_path / "manifest.json").write_text('{"files": {}}\n')
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert manifest_fault(tmp_path) is None


def test_step_names_are_numbers_that_can_be_read():
    assert [name for name in ("7", "٧", "²", "-1", "1" * 5000, "") if is_step_name(name)] == ["7"]


RECORD = {"kind": "train", "step": 3, "loss": 1.5}
LINE = json.dumps(RECORD).encode() + b"\n"


@fuzz
@given(st.lists(st.one_of(CONTENTS, st.just(b"\xff"), st.just(b"\0\0")), max_size=4), st.integers(0, 3))
def test_any_lines_among_records(tmp_path, junk, at):
    junk = [line.replace(b"\n", b"") + b"\n" for line in junk]
    lines = [*junk[:at], LINE, *junk[at:], LINE]
    (tmp_path / "m.jsonl").write_bytes(b"".join(lines))
    records = read_metrics(tmp_path / "m.jsonl")
    assert records.count(RECORD) >= 2 and all(isinstance(r["kind"], str) and type(r["step"]) is int for r in records)


@fuzz
@given(st.integers(0, len(LINE)), st.binary(max_size=5))
def test_a_line_cut_anywhere(tmp_path, cut, tail):
    (tmp_path / "m.jsonl").write_bytes(LINE + LINE[:cut] + tail)
    records = read_metrics(tmp_path / "m.jsonl")
    assert records[0] == RECORD and records in ([RECORD], [RECORD, RECORD])


def test_a_line_without_end_is_passed_over_and_the_next_is_read(tmp_path):
    hole = b'{"kind": "train", "step": 1, "x": "' + b"a" * (3 << 20) + b'"}\n'
    (tmp_path / "m.jsonl").write_bytes(LINE + hole + LINE + b"[" * 5000 + b"\n" + LINE + b"b" * (1 << 20))
    assert read_metrics(tmp_path / "m.jsonl") == [RECORD] * 3
    assert read_metrics(tmp_path / "m.jsonl", len(LINE)) == [RECORD] * 2


@fuzz
@given(
    st.lists(
        st.fixed_dictionaries(
            {"kind": st.sampled_from(("train", "eval", "event")), "step": st.integers(-9, 2**62)},
            optional={name: st.one_of(NUMBERS, JSON) for name in ("loss", "lr", "cutoff", "grad_norm", "from", "to")}
            | {"event": st.sampled_from(("cutoff_raised", "x"))},
        ),
        max_size=6,
    )
)
def test_records_of_any_numbers_become_a_stream(records):
    stream = read_stream(History(records))
    assert len(stream.steps) == len(stream.losses) == len(stream.lrs) <= len(records)


@fuzz
@given(st.one_of(st.binary(max_size=80), st.text(max_size=30).map(lambda t: sample_entry(4, 8, 2.5, t).encode())))
def test_any_samples(tmp_path, content):
    (tmp_path / "samples.txt").write_bytes(content)
    assert all(isinstance(step, int) and isinstance(text, str) for step, text in read_samples(tmp_path / "samples.txt"))


@fuzz
@given(st.text(max_size=30).filter(lambda text: "=== step" not in text))
def test_samples_come_back_as_they_are_shown(tmp_path, text):
    (tmp_path / "samples.txt").write_text(sample_entry(4, 8, 2.5, text) * 2, encoding="utf-8")
    assert read_samples(tmp_path / "samples.txt") == [(4, printable(text))] * 2


def test_a_step_of_too_many_digits_is_no_heading(tmp_path):
    (tmp_path / "samples.txt").write_text(f"=== step {'9' * 5000}, cutoff 4, bpb 1\nx\n\n")
    assert read_samples(tmp_path / "samples.txt") == []


WORDS = ("step ", "epoch ", "/", " loss=", " lr=", " cutoff=", "CUTOFF RAISED: ", "LR REDUCED: ", " -> ", "loss: ")
PIECES = st.one_of(st.sampled_from((*WORDS, " avg_loss=", "\n", "0", "1", "3.5", "9" * 30, "1e999", "٣")))


@fuzz
@given(st.lists(PIECES, max_size=14).map("".join))
def test_any_text_log(tmp_path, text):
    (tmp_path / "log.txt").write_text(f"step 1/10 loss=2.0\n{text}\nstep 2/10 loss=2.0 cutoff=4\n", encoding="utf-8")
    log = read_text_log(tmp_path / "log.txt")
    assert len(log.records) >= 2


def test_a_text_log_of_nothing_is_said(tmp_path):
    for text in ("step 1/0 loss=2.0", f"step {'9' * 5000}/1 loss=2.0", "LR REDUCED: 0 -> 1"):
        (tmp_path / "log.txt").write_text(text)
        with pytest.raises(UsageError, match="holds no line such as"):
            read_text_log(tmp_path / "log.txt")
    (tmp_path / "log.txt").write_text("step 1/10 loss=2.0\nLR REDUCED: 0 -> 1\n")
    log = read_text_log(tmp_path / "log.txt")
    assert isinstance(diagnose(History(log.records), log.facts), list)


HOST = {
    "config": {},
    "controller": {"cutoff": 4, "losses": [0.5, 2], "raises": [[1, 2, 4, None, 0.5], [1, 2, 4, None]]},
    "corpus": "abc",
    "scores": {},
    "evaluated_at": None,
    "best_bpb": None,
    "train_loss": float("nan"),
    "epoch_loss": [0.5, 1],
    "elapsed": 1.5,
    "train_seconds": 1,
    "metrics_bytes": 0,
    "samples_bytes": 0,
}


def test_the_host_state_of_a_run_is_accepted(tmp_path):
    assert require_training_host(HOST, 4, tmp_path) is None, "raises otherwise, as the next tests show"


@pytest.mark.parametrize("field", [*HOST, *(f"controller.{name}" for name in HOST["controller"])])
@pytest.mark.parametrize("change", ("missing", "another kind"))
def test_a_field_that_is_missing_or_of_another_kind_is_named(tmp_path, field, change):
    host = {**HOST, "controller": dict(HOST["controller"])}
    *path, name = field.split(".")
    target = host["controller"] if path else host
    if change == "missing":
        del target[name]
    else:
        target[name] = {"an": "object"} if not isinstance(target[name], dict) else "a text"
    with pytest.raises(CheckpointError, match=field if field != "controller" else "controller.cutoff"):
        require_training_host(host, 4, tmp_path)


@pytest.mark.parametrize("cutoff", (0, -1, 5, 10**400, 4.0, True, None))
def test_a_cutoff_outside_of_the_window_is_refused(tmp_path, cutoff):
    with pytest.raises(CheckpointError, match="controller.cutoff must be a whole number within 1 and 4"):
        require_training_host({**HOST, "controller": {**HOST["controller"], "cutoff": cutoff}}, 4, tmp_path)


@fuzz
@given(st.dictionaries(st.sampled_from(list(HOST)), JSON, max_size=3), st.dictionaries(st.text(max_size=6), JSON))
def test_any_host_state(tmp_path, changes, controller):
    host = {**HOST, **changes}
    if "controller" not in changes:
        host["controller"] = {**HOST["controller"], **controller}
    try:
        require_training_host(host, 4, tmp_path)
    except CheckpointError as error:
        assert str(error).isprintable() and len(str(error)) < 3000


@fuzz
@given(CONTENTS)
def test_any_bytes_where_json_is_expected(tmp_path, content):
    for folder, name in (("host", "metadata"), ("metrics", "metrics")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(content)
    try:
        assert isinstance(read_host(tmp_path), dict)
    except CheckpointError as error:
        assert "metadata cannot be read" in str(error)
    assert read_metric(tmp_path) is None or isinstance(read_metric(tmp_path), float)


@pytest.mark.parametrize("content", ("[1]", "{", '{"packages": 3}', "[" * 100_000))
def test_an_environment_that_cannot_be_read_is_written_anew(tmp_path, content):
    (tmp_path / "env.json").write_text(content)
    changes = RunDirectory(tmp_path).write_env()
    assert isinstance(changes, dict) and "jax" in json.loads((tmp_path / "env.json").read_text())["packages"]


@fuzz
@given(JSON)
def test_values_are_shown_on_one_short_line(value):
    assert shown(value).isprintable() and len(shown(value)) < 2000


def test_what_is_no_json_is_refused():
    for content in ("NaN", '{"a": -Infinity}', "[" * 100_000, b"\xff", "1" * 5000):
        with pytest.raises(ValueError):
            parse_json(content)
    assert parse_json("[NaN]", nan=True)[0] != 0
