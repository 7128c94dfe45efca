"""metrics.jsonl: one whole JSON object a line, truncated to the restored step, no NaN; and the picture drawn of it."""

import inspect
import json
import random

import numpy as np
import pytest

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.curriculum import Raise
from fftlm_jax.recording.console import duration
from fftlm_jax.recording.curves import draw_curves, thinned
from fftlm_jax.recording.history import History
from fftlm_jax.recording.metrics import MetricsLog, read_metrics
from fftlm_jax.training.recorder import NullRecorder, Recorder
from tests.tiny import tiny


def test_records_are_written_in_order_and_truncated_on_resume(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", tmp_path / "tb")
    log.write("train", 1, loss=2.0)
    size = log.flush()
    log.write("event", 1, event="checkpoint_saved")
    log.write("train", 2, loss=1.0)
    log.write("event", 3, event="nonfinite", loss=float("inf"))
    log.close()
    resumed = MetricsLog(tmp_path / "m.jsonl", tmp_path / "tb", size, step=1)
    resumed.write("train", 2, loss=1.5)
    resumed.close()
    records = read_metrics(tmp_path / "m.jsonl")
    assert [(r["step"], r["loss"]) for r in records if r["kind"] == "train"] == [(1, 2.0), (2, 1.5)]
    assert [r["event"] for r in records if r["kind"] == "event"] == ["checkpoint_saved", "nonfinite"]


def test_nonfinite_numbers_are_null_and_said_so(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", tmp_path / "tb")
    log.write("train", 1, loss=float("nan"), lr=1.0)
    log.close()
    line = (tmp_path / "m.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "kind": "train",
        "step": 1,
        "loss": None,
        "lr": 1.0,
        "nonfinite": True,
    }


def test_a_line_cut_short_is_left_out(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    assert read_metrics(tmp_path / "m.jsonl") == [{"kind": "train", "step": 1}]


def test_curves_are_drawn_of_any_stage_of_a_run(tmp_path):
    rng = random.Random(0)
    train = [
        {"kind": "train", "step": i, "loss": 3 + rng.random(), "lr": 1e-3, "cutoff": 128, "grad_norm": 1.0}
        for i in range(1, 200)
    ]
    evaluation = {"kind": "eval", "step": 100, "bpb": 4.0, "loss": 3.0, "chunk_bpb": 5.0}
    raised = {"kind": "event", "event": "cutoff_raised", "step": 50, "from": 128, "to": 256}
    halted = {"kind": "train", "step": 200, "loss": None, "nonfinite": True}
    warnings = [
        {"kind": "event", "event": "warning", "step": 100, "rule": rule, "at": at}
        for rule, at in (("oscillation", 50), ("low_learning_rate", 50), ("tiny_gradients", 190))
    ]
    sizes = set()
    last = [*train, evaluation, raised, halted]
    for records in ([], train[:1], [*train, evaluation], last, [*last, *warnings]):
        draw_curves(History(records), tmp_path / "curves.png", "title")
        sizes.add((tmp_path / "curves.png").stat().st_size)
    assert len(sizes) == 5, "every record leaves a mark"


@pytest.mark.parametrize("seconds,text", ((4.6, "5s"), (185, "3m05s"), (7380, "2h03m")))
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_curves_of_a_run_whose_objective_changed(tmp_path):
    """Not every record of it has every loss."""
    common = {"lr": 0.1, "cutoff": 4, "grad_norm": 1.0, "loss": 2.0}
    records = [
        {"kind": "train", "step": 1, **common},
        {"kind": "eval", "step": 1, "bpb": 3.0},
        {"kind": "train", "step": 2, **common, "chunk_loss": 1.5, "next_byte_loss": 1.0},
        {"kind": "eval", "step": 2, "bpb": 3.0, "chunk_bpb": 4.0},
    ]
    for order in (records, records[2:] + records[:2]):
        draw_curves(History(order), tmp_path / "curves.png", "title")
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "bound,words,logged",
    ((None, "(improvement 0.1% < 0.5%)", set()), (0.0041, "(improvement 0.1%, at most 0.4% < 0.5%)", {0.0041})),
)
def test_a_raise_says_what_was_held_against_the_threshold(tmp_path, capsys, bound, words, logged):
    recorder = Recorder(tiny(curriculum__threshold=0.005), RunDirectory(tmp_path), (0, 0), 0)
    recorder.raised(Raise(40, 4, 8, 0.001, bound), 1e-3, 1e-2)
    recorder.close()
    assert f"CUTOFF RAISED: 4 -> 8 {words}, LR" in capsys.readouterr().out
    event = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert event["improvement"] == 0.001 and {v for k, v in event.items() if k == "improvement_bound"} == logged


def test_a_history_that_grows_record_by_record_is_the_one_read_from_the_file(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", tmp_path / "tb")
    for step in range(1, 1500):  # Beyond the first capacity of the columns.
        log.write("train", step, loss=1 / step, lr=0.1, cutoff=4, grad_norm=float("inf") if step == 7 else 2.0)
        if step % 100 == 0:
            log.write("radial", step, groups={"mlp": {"abs_rho": 0.1 * step}})
            log.write("eval", step, bpb=1.0, loss=0.7)
    log.write("event", 3, event="cutoff_raised", **{"from": 4, "to": 8})
    log.write("event", 9, event="warning", rule="oscillation", at=5)
    grown = log.history
    log.close()
    read = History(read_metrics(tmp_path / "m.jsonl"))
    for name in ("step", "loss", "chunk_loss", "lr", "cutoff", "grad_norm"):
        np.testing.assert_array_equal(grown.train[name], read.train[name])
    assert len(grown.train) == 1499 and np.flatnonzero(np.isnan(grown.train["grad_norm"])).tolist() == [6]
    assert np.isnan(grown.train["chunk_loss"]).all()
    np.testing.assert_array_equal(grown.rho["mlp"]["abs_rho"], read.rho["mlp"]["abs_rho"])
    for name in ("evaluations", "raises", "warnings"):
        assert getattr(grown, name) == getattr(read, name) != []


def test_a_thinned_line_keeps_its_extremes_and_its_order():
    x, y = np.arange(100_000.0), np.random.default_rng(0).uniform(1, 2, size=100_000)
    y[31_234], y[77_777], y[77_778] = 50.0, 0.5, np.nan
    thin_x, thin_y = thinned(x, y, most=1000)
    assert len(thin_x) <= 1000 and (np.diff(thin_x) > 0).all()
    assert thin_y.max() == 50 and thin_y.min() == 0.5 and {31_234, 77_777} <= set(thin_x)
    np.testing.assert_array_equal(thin_y, y[thin_x.astype(int)])
    assert len(thinned(x, y, most=100_000)[0]) == 99_999, "all but the one that is no number"


def test_the_null_recorder_takes_every_call_of_the_loop(tmp_path):
    own = {"close", "say", "started", "changed"}  # Of the process that opens the files.
    recorder = NullRecorder()
    calls = {name: f for name, f in inspect.getmembers(Recorder, inspect.isfunction) if not name.startswith("_")}
    for name, function in calls.items():
        if name not in own:
            inspect.signature(getattr(recorder, name)).bind(*list(inspect.signature(function).parameters)[1:])
    assert recorder.flush() == (0, 0)
