"""The doctor finds the documents' example logs for what they are, and reads runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.doctor import rules_health
from fftlm_jax.doctor.evidence import HEALTHY, WARNING, read_stream
from fftlm_jax.doctor.examine import examine, main
from fftlm_jax.doctor.text_log import read_text_log
from fftlm_jax.recording.history import History
from fftlm_jax.recording.metrics import read_samples, sample_entry
from tests.tiny import tiny_values

# The documents' numbers, in their format.
ALIGNED_GOOD = """
Epoch 1 avg_loss=2.86 cutoff=128/513
Epoch 2 🚀 CUTOFF RAISED: 128 -> 256 (the loss has plateaued)
  step 10/1000 loss=3.45 lr=2.0e-4 cutoff=256
  step 50/1000 loss=3.12 lr=1.9e-4 cutoff=256
  step 100/1000 loss=2.78 lr=1.7e-4 cutoff=256
Epoch 2 avg_loss=2.65 cutoff=256/513
"""
ALIGNED_BAD = """
Epoch 2 🚀 CUTOFF RAISED: 128 -> 256
  step 10/1000 loss=3.45 lr=2.0e-5 cutoff=256
  step 50/1000 loss=3.44 lr=2.0e-5 cutoff=256
  step 100/1000 loss=3.43 lr=1.9e-5 cutoff=256
"""
OSCILLATING = """
step 300/1000 loss=3.003 cutoff=128
[PLATEAU] 128 -> 512
step 310/1000 loss=3.450 cutoff=512
step 320/1000 loss=3.150 cutoff=512
step 330/1000 loss=3.000 cutoff=512
step 340/1000 loss=3.110 cutoff=512
step 350/1000 loss=2.990 cutoff=512
step 360/1000 loss=3.105 cutoff=512
"""
AFTER_THE_FIX = """
step 300/1000 loss=3.003 lr=1.8e-4 cutoff=128
[PLATEAU] 128 -> 512
  LR REDUCED: 2.0e-4 -> 1.0e-4 (half)
step 310/1000 loss=3.450 lr=1.0e-4 cutoff=512
step 320/1000 loss=3.150 lr=0.99e-4 cutoff=512
step 330/1000 loss=3.000 lr=0.98e-4 cutoff=512
step 340/1000 loss=2.950 lr=0.97e-4 cutoff=512
step 350/1000 loss=2.900 lr=0.96e-4 cutoff=512
step 360/1000 loss=2.850 lr=0.95e-4 cutoff=512
"""
STUCK = "".join(f"Epoch {epoch} avg_loss={2.5 - 0.0001 * epoch:.4f} cutoff=128/513\n" for epoch in range(14))
EVERY_EPOCH = """
Epoch 1 avg_loss=2.86 cutoff=128/513
Epoch 2 🚀 CUTOFF RAISED: 128 -> 256
Epoch 2 avg_loss=2.75 cutoff=256/513
Epoch 3 🚀 CUTOFF RAISED: 256 -> 512
Epoch 3 avg_loss=2.70 cutoff=512/513
"""

DOCUMENTS = (
    ("aligned, good", ALIGNED_GOOD, set(), {"recovered_spike", "smooth_descent"}),
    ("aligned, warning", ALIGNED_BAD, {"low_learning_rate", "slow_descent"}, set()),
    ("physics, oscillating", OSCILLATING, {"oscillation"}, {"recovered_spike"}),
    ("physics, after the fix", AFTER_THE_FIX, set(), {"recovered_spike", "smooth_descent"}),
    ("monitoring, smooth", "loss: 3.0 → 2.95 → 2.90 → 2.85 → 2.80 (smooth)", set(), {"smooth_descent"}),
    ("monitoring, oscillating", "loss: 3.0 → 3.1 → 2.9 → 3.1 → 2.95 (oscillating)", {"oscillation"}, set()),
    ("monitoring, slow", "loss: 3.0 -> 2.999 -> 2.998 -> 2.997 (slow)", {"slow_descent"}, set()),
    ("plateau rule, too slow", STUCK, {"no_raise"}, set()),
    ("plateau rule, too fast", EVERY_EPOCH, {"raises_every_epoch"}, set()),
)


@pytest.mark.parametrize("case,text,warnings,healthy", DOCUMENTS, ids=[case for case, *_ in DOCUMENTS])
def test_the_documents_logs_are_found_for_what_they_are(tmp_path, case, text, warnings, healthy):
    (tmp_path / "log.txt").write_text(text)
    findings = examine(tmp_path / "log.txt")
    assert {f.rule for f in findings if f.severity == WARNING} == warnings
    assert {f.rule for f in findings if f.severity == HEALTHY} == healthy


def test_the_tenfold_learning_rate_is_seen_against_the_peak_given(tmp_path):
    """At a peak of 2e-5 the same lines are only slow."""
    (tmp_path / "log.txt").write_text(ALIGNED_BAD)
    finding = next(f for f in examine(tmp_path / "log.txt") if f.rule == "low_learning_rate")
    assert finding.evidence["peak"] == 2e-4 and finding.evidence["lr"] == pytest.approx(2e-5, rel=0.05)
    assert "lr.stages" in finding.change
    assert {f.rule for f in examine(tmp_path / "log.txt", base_lr=2e-5)} == {"slow_descent"}


def test_lines_of_a_log_become_records(tmp_path):
    """Of this package's console: epochs done, counted from 1, and steps that start anew in each."""
    (tmp_path / "run.log").write_text("""
        2026-11-20 10:00:00   step 90/100 loss=2.500 lr=3.0e-03 cutoff=32 55 kB/s
        2026-11-20 10:00:01   step 100/100 loss=2.400 lr=2.9e-03 cutoff=32 55 kB/s
        2026-11-20 10:00:01 epoch 1/8 avg_loss=2.600 bpb=3.500 cutoff=32/129 lr=2.9e-03 elapsed=5s
        2026-11-20 10:00:02 🚀 CUTOFF RAISED: 32 -> 64 (improvement 2.8% < 3.5%), LR 2.8e-03 -> 4.0e-03 (restart)
        2026-11-20 10:00:02   step 10/100 loss=2.450 lr=4.0e-03 cutoff=64 55 kB/s
        loss=nan is no number and this line no loss""")
    records, facts = read_text_log(tmp_path / "run.log")
    assert [(r["step"], r.get("loss")) for r in records] == [(90, 2.5), (100, 2.4), (100, None), (110, 2.45)]
    assert (records[2]["from"], records[2]["to"], records[3]["lr"]) == (32, 64, 4e-3)
    assert facts.curriculum.steps_per_epoch == 100 and facts.curriculum.ladder[-1] == 129


def test_a_log_without_averages_wraps_into_the_next_epoch(tmp_path):
    steps = (990, 1000, 10, 20)
    (tmp_path / "log.txt").write_text("\n".join(f"step {s}/1000 loss=2.0 lr=1e-4 cutoff=128" for s in steps))
    assert [r["step"] for r in read_text_log(tmp_path / "log.txt").records] == [990, 1000, 1010, 1020]


def write_run(folder, records, **overrides):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_values(**overrides).to_dict()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_run_directory(tmp_path, capsys):
    """With its config, and the samples that it wrote."""
    step = {"kind": "train", "epoch": 0, "cutoff": 4, "grad_norm": 0.01}
    records = [{**step, "step": i, "loss": 2 + 1 / i, "lr": 1e-2} for i in range(1, 201)]
    write_run(tmp_path / "run", records)
    entries = [sample_entry(step, 4, 3.0, "and so on " * 12) for step in (50, 100)]
    (tmp_path / "run" / "samples.txt").write_text("".join(entries))
    assert main([str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "warning: tiny_gradients, step 100" in output and "evidence: median=0.01" in output
    assert "warning: repetitive_samples, step 50" in output and "change: lr.base" in output
    assert output.splitlines()[-1].endswith("healthy signs")


@pytest.mark.parametrize("lr", ("nan", "0", "-1", "inf", "1e-400", "1e400"))
def test_a_peak_that_no_run_has_is_refused(tmp_path, capsys, lr):
    (tmp_path / "log.txt").write_text("step 1/10 loss=2.0\n")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "log.txt"), f"--lr={lr}"])
    told = capsys.readouterr()
    assert ended.value.code == 1 and told.out == "" and "--lr: a peak learning rate is a finite number" in told.err


FAR = (
    "Epoch 999999999 avg_loss=2.86 cutoff=1/0",
    "Epoch 999999999/999999999 avg_loss=2.86 cutoff=999999999/999999999",
    "step 999999999/999999999 loss=2.0 lr=1e-4 cutoff=1",
)


@pytest.mark.parametrize("line", FAR)
@pytest.mark.parametrize("is_first", (True, False))
def test_a_line_far_away_takes_no_longer_than_any_other(tmp_path, capsys, line, is_first):
    """What takes a step for each between would still be at it when the suite's patience ends."""
    lines = [f"step {10 * i}/1000 loss=3.{i} lr=2.0e-4 cutoff=256" for i in range(1, 10)]
    (tmp_path / "log.txt").write_text("\n".join([line, *lines] if is_first else [*lines, line]))
    assert main([str(tmp_path / "log.txt")]) == 0 and "healthy signs" in capsys.readouterr().out


def test_what_cannot_be_read_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "young", [{"kind": "event", "step": 0, "event": "compiled"}])
    write_run(tmp_path / "broken", [])
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "prose.txt").write_text("The loss went down. Everybody was pleased.")
    cases = (("empty", 1, "holds no run"), ("young", 1, "no step is recorded yet"), ("broken", 4, "cannot be read"))
    for name, code, message in (*cases, ("prose.txt", 1, "holds no line"), ("missing", 1, "cannot be read")):
        assert main([str(tmp_path / name)]) == code, name
        captured = capsys.readouterr()
        assert message in captured.err and len(captured.err.strip().splitlines()) == 1 and not captured.out


def test_samples_come_back_as_they_were_written(tmp_path):
    texts = ["def f(x):\n    return x\n", "", "=== no heading\n\n"]
    (tmp_path / "samples.txt").write_text("".join(sample_entry(i, 8, 2.5, text) for i, text in enumerate(texts)))
    assert read_samples(tmp_path / "samples.txt") == list(enumerate(texts))
    assert read_samples(tmp_path / "missing.txt") == []


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 150), st.integers(1, 400)), min_size=1, max_size=6), st.integers(1, 120))
def test_the_spans_of_an_epoch_are_those_found_one_after_the_other(blocks, steps_per_epoch):
    """Blocks of steps in a row, with a gap before each."""
    gaps = [1] * 300 + [step for length, gap in blocks for step in (gap, *[1] * length)]
    steps = np.cumsum(gaps).astype(float)
    stream = read_stream(History({"kind": "train", "step": s, "loss": 1.0, "grad_norm": s} for s in steps))
    facts = SimpleNamespace(curriculum=SimpleNamespace(steps_per_epoch=steps_per_epoch))
    length, found = max(steps_per_epoch, rules_health._FEWEST_STEPS), []
    for begin in range(rules_health._START, int(steps[-1]) - length + 1, length):
        norms = steps[(steps > begin) & (steps <= begin + length)]
        if len(norms) >= rules_health._FEWEST_STEPS:
            found.append((begin, norms.tolist()))
    assert found and [(begin, norms.tolist()) for begin, norms in rules_health._spans(stream, facts)] == found
