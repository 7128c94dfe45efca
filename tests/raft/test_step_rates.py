"""Rates within a cycle: no step at 0, warm-up never eats a short cycle, the arithmetic of the specification."""

import numpy as np
import pytest

from fftlm_jax.raft.cycle_lr import epochs_for, step_rates


@pytest.mark.parametrize("steps,mean", ((1, 1.0), (2, 0.75), (5, 0.6), (16, 0.531)))
def test_a_line_to_zero_without_warmup(steps, mean):
    assert step_rates(1.0, steps, decay=True).mean() == pytest.approx(mean, abs=5e-4)


def _usual_line(steps, warmup):
    """The schedule that many trainers use: up from 0 in `warmup` steps, down to 0 at the end."""
    return np.array([s / warmup if s < warmup else (steps - s) / (steps - warmup) for s in range(steps)])


@pytest.mark.parametrize("steps,usual", ((1, 0.0), (2, 0.05), (5, 0.2), (16, 0.5)))
def test_a_fixed_warmup_eats_short_cycles_and_ours_does_not(steps, usual):
    assert _usual_line(steps, 10).mean() == pytest.approx(usual)
    assert step_rates(1.0, steps, warmup=10, decay=True).mean() >= 0.5
    assert step_rates(1.0, steps, warmup=10).mean() >= 0.9


def test_no_step_is_at_zero_and_the_peak_is_reached():
    for steps in range(1, 60):
        for warmup in (0, 1, 5, 100):
            for decay in (False, True):
                rates = step_rates(3e-4, steps, warmup=warmup, decay=decay)
                assert len(rates) == steps and rates.min() > 0 and rates.max() == pytest.approx(3e-4)


def test_warmup_rises_in_equal_steps():
    np.testing.assert_allclose(step_rates(1.0, 40, warmup=3)[:5], [0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("per_epoch,wanted", ((1, 5), (2, 3), (4, 3), (50, 3)))
def test_short_cycles_are_repeated(per_epoch, wanted):
    assert epochs_for(per_epoch, epochs=3, min_steps=5, max_epochs=10) == wanted


def test_but_not_without_end():
    assert epochs_for(1, epochs=3, min_steps=50, max_epochs=10) == 10
