"""Simulated plateaus: known trends are found again, and the rules are scored on cases whose answer is known."""

import json

import numpy as np
import pytest

from experiments import plateau_simulation
from experiments.plateau_simulation import TESTS, cells_of, judged, mean_raise, table
from experiments.recorded_losses import Recording, record, simulate, take_apart
from fftlm_jax.runtime.errors import UsageError

STEPS = np.arange(100, 900)
TREND = 1.3 + 12.0 * (STEPS + 40.0) ** -0.6


def recording(noise):
    residuals = noise * np.random.default_rng(0).normal(size=len(TREND))
    return Recording("made up", 100, TREND, residuals)


def write_run(folder, losses, **changes):
    folder.mkdir(exist_ok=True)
    rows = [{"kind": "train", "step": i + 1, "loss": float(x), "cutoff": 16} for i, x in enumerate(losses)]
    for row in rows[-100:]:
        row.update(changes)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_a_known_trend_is_found_again():
    noise = 0.05 * np.random.default_rng(1).normal(size=len(TREND))
    trend, residuals = take_apart(TREND + noise, 100)
    assert np.abs(trend - TREND).max() < 0.015 and abs(residuals.mean()) < 1e-12
    assert np.corrcoef(residuals, noise)[0, 1] > 0.99
    exact, _ = take_apart(TREND, 100)
    assert exact == pytest.approx(TREND, abs=1e-6)


def test_simulated_residuals_are_blocks_of_the_recorded_ones():
    made = recording(0.1)
    losses = simulate(made, paths=3, block=25, seed=0)
    assert losses.shape == (3, 800) and not np.array_equal(losses[0], losses[1])
    blocks = (losses - TREND).reshape(3, 32, 25)
    doubled = np.concatenate([made.residuals, made.residuals])
    for block in blocks.reshape(-1, 25):
        start = np.abs(made.residuals - block[0]).argmin()
        assert block == pytest.approx(doubled[start : start + 25], abs=1e-12)


@pytest.fixture(scope="module")
def cells():
    made = recording(0.05)
    return cells_of(made, simulate(made, paths=40, block=25, seed=0), check_every=20, confidence=0.95)


def test_without_noise_both_rules_raise_where_the_plateau_begins():
    for cell in cells_of(recording(0.0), np.stack([TREND]), check_every=20, confidence=0.95):
        assert cell.false_per_check == 0 and not cell.is_false.any()
        if cell.plateau is None:
            assert np.isinf(cell.raised).all() and np.isnan(cell.delay).all()
        else:
            # To the confidence rule, what bends inside a window is noise: it may be a check late.
            assert cell.delay[0] in ((0,) if cell.test == "simple" else (0, 20))
            assert cell.raised[0] == cell.plateau + cell.delay[0]


def test_the_confidence_rule_keeps_its_word_and_the_simple_one_is_oftener_wrong(cells):
    for test, cell in ((c.test, c) for c in cells):
        if test == "confidence":
            assert cell.false_per_check < 0.05
    for simple, confident in zip(cells[::2], cells[1::2], strict=True):
        assert (simple.test, confident.test) == TESTS and simple[1:4] == confident[1:4]
        assert simple.false_per_check > 0.1 > confident.false_per_check
        assert (simple.raised <= confident.raised).all()


def test_a_larger_threshold_raises_sooner_and_has_its_plateau_sooner(cells):
    for test in TESTS:
        for window in plateau_simulation.WINDOWS:
            row = [c for c in cells if (c.test, c.window) == (test, window)]
            steps, plateaus = [mean_raise(c, 900) for c in row], [c.plateau or 10**6 for c in row]
            assert steps == sorted(steps, reverse=True) and plateaus == sorted(plateaus, reverse=True)
    advice = judged(cells, 900)
    assert 'simple, "raised every epoch -> increase the threshold": the other way round' in advice
    assert 'simple, "raised every epoch -> increase the window": as said' in advice
    assert table(cells, 900).count("\n") == 2 + 12


def test_the_command_prints_tables_and_draws(tmp_path, capsys):
    losses = np.concatenate([np.full(100, 3.0), simulate(recording(0.05), 1, 1, seed=3)[0]])
    run, figure = write_run(tmp_path / "run", losses), tmp_path / "figure.png"
    options = [str(run), f"--figure={figure}", "--paths=5", "--check_every=100", "--larger_batch=4"]
    assert plateau_simulation.main(options) == 0
    printed = capsys.readouterr().out
    assert "### run, a batch 4 times as large" in printed and "800 losses from" in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "count,changes,message",
    (
        (350, {}, "250 losses after step 100 are too few"),
        (800, {"cutoff": 32}, "its cutoff was raised"),
        (800, {"loss": None}, "not finite"),
    ),
)
def test_runs_that_cannot_be_taken_apart_are_refused(tmp_path, capsys, count, changes, message):
    run = write_run(tmp_path / "run", TREND[:count], **changes)
    assert plateau_simulation.main([str(run)]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match="name a run directory"):
        record(tmp_path / "none", 100)
