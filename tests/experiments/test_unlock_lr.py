"""The experiment on raises: what it measures around one, and that every arm is a config that differs as it says."""

import numpy as np
import pytest

from experiments import unlock_lr
from experiments.around_raises import after_raise, detrended
from experiments.trials import split_outside_brackets


def records(loss, raised_at):
    event = {"kind": "event", "event": "cutoff_raised", "step": raised_at}
    return [event, *({"kind": "train", "step": i + 1, "loss": float(v)} for i, v in enumerate(loss))]


def test_a_spike_and_its_recovery():
    loss = np.concatenate([np.full(50, 3.0), np.full(20, 3.5), np.full(60, 2.9)])
    found = after_raise(records(loss, 50))
    assert found["spike"] == pytest.approx(0.5)
    assert found["recovery"] == 19, "the mean of ten is below 3 where nine of them are"
    assert after_raise(records(loss, 100)) == {}, "too little after the raise to see a wobble"
    assert after_raise(records(loss, 50)[1:]) == {}, "no raise"


def test_oscillation_is_told_from_noise_and_from_descent():
    steps = np.arange(120)
    smooth, swinging = 3.0 - 0.005 * steps, 3.0 + 0.05 * (-1.0) ** steps
    noise = 0.05 * np.random.default_rng(0).normal(size=120)
    found = {name: after_raise(records(x, 40)) for name, x in (("smooth", smooth), ("swing", swinging), ("n", noise))}
    assert found["smooth"]["wobble"] == pytest.approx(0, abs=1e-9)
    assert found["swing"]["wobble"] == pytest.approx(0.05, rel=0.05) and found["swing"]["alternation"] < -0.9
    assert abs(found["n"]["alternation"]) < 0.4
    assert abs(detrended(smooth)).max() < 1e-9


def test_every_arm_is_there_once_and_valid():
    from configs import curriculum_trial
    from fftlm_jax.config.reading import read_config

    trials = unlock_lr.trials(seeds=1)
    assert len({trial.arm for trial in trials}) == len(trials)
    assert {unlock_lr.baseline(setting) for setting in unlock_lr.SETTINGS} <= {trial.arm for trial in trials}
    for trial in trials:
        values = curriculum_trial.get_config()
        for override in trial.overrides:
            key, _, text = override.partition("=")
            value = text if text.isidentifier() else eval(text)
            values.update_from_flattened_dict({key: value})
        config = read_config(values)
        assert trial.arm.endswith(f"{config.lr.restart} x {config.lr.factor}")
        assert split_outside_brackets(" ".join(trial.overrides), " ") == list(trial.overrides)
