"""Losses that a run left behind, taken apart into trend and residuals, and put together anew.

For `experiments.plateau_simulation`, and for whoever else needs training losses whose true trend is known.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.errors import UsageError

_LAGS = (1, 2, 5, 10, 25)
_FEWEST_LOSSES = 300


class Recording(NamedTuple):
    """Losses of a run from step `first` on, taken apart: trend + residuals, both [steps], in nats."""

    name: str
    first: int
    trend: np.ndarray
    residuals: np.ndarray


def record(run: Path, skip: int, larger_batch: float = 1.0) -> Recording:
    """The losses of a run directory without its first `skip` steps, taken apart.

    Raises:
        UsageError: if there is no such run, or its cutoff changed, or its losses are too few or not finite.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise UsageError(f"{run} holds no metrics.jsonl; name a run directory.")
    train = [r for r in read_metrics(file) if r["kind"] == "train" and r["step"] > skip]
    if len(train) < _FEWEST_LOSSES:
        raise UsageError(f"{run}: {len(train)} losses after step {skip} are too few; {_FEWEST_LOSSES} are needed.")
    if len({r["cutoff"] for r in train}) > 1:
        raise UsageError(f"{run}: its cutoff was raised; hold it with curriculum.rule=schedule and a single row.")
    if any(r["loss"] is None for r in train):
        raise UsageError(f"{run}: has losses that are not finite.")
    trend, residuals = take_apart(np.array([r["loss"] for r in train]), skip)
    name = run.name if larger_batch == 1 else f"{run.name}, a batch {larger_batch:g} times as large"
    return Recording(name, skip, trend, residuals / larger_batch**0.5)


def take_apart(losses: np.ndarray, skip: int) -> tuple[np.ndarray, np.ndarray]:
    """Trend `a + b (t + c)^-d` by least squares, t = `skip`, `skip` + 1, ...; and what is left, with mean 0.

    b, c and d are positive, so the trend's improvement per half window falls steadily.

    Raises:
        UsageError: if no such curve can be fitted.
    """
    steps = skip + np.arange(len(losses), dtype=float)

    def power_law(p: np.ndarray) -> np.ndarray:
        return p[0] + np.exp(p[1] - np.exp(p[3]) * np.log(steps + np.exp(p[2])))

    guess = (losses[-(len(losses) // 10) :].mean() - 0.3, np.log(10.0), np.log(10.0), np.log(0.6))
    fit = least_squares(lambda p: power_law(p) - losses, guess, method="lm")
    if not fit.success:
        raise UsageError("the losses do not fall like a power law; use a run at a constant learning rate.")
    trend = power_law(fit.x)
    return trend, losses - trend - (losses - trend).mean()


def simulate(recording: Recording, paths: int, block: int, seed: int) -> np.ndarray:
    """Losses [paths, steps]: the trend plus blocks of `block` successive residuals from random places (circular)."""
    count = len(recording.trend)
    starts = np.random.default_rng(seed).integers(0, count, (paths, -(-count // block), 1))
    places = ((starts + np.arange(block)) % count).reshape(paths, -1)[:, :count]
    return recording.trend + recording.residuals[places]


def residual_words(recording: Recording) -> str:
    """Size of the residuals, their autocorrelation, and how far the trend misses the means of tenths of the run."""
    r = recording.residuals
    correlations = ", ".join(f"{r[k:] @ r[:-k] / (r @ r):+.3f}" for k in _LAGS)
    tenths = np.array([part.mean() / (r.std() / len(part) ** 0.5) for part in np.array_split(r, 10)])
    return (
        f"{len(r)} losses from {recording.trend[0]:.3f} to {recording.trend[-1]:.3f}, noise {r.std():.3f} "
        f"({r.std() / recording.trend[-1]:.1%}); autocorrelation at lags {', '.join(map(str, _LAGS))}: {correlations} "
        f"(standard error {len(r) ** -0.5:.3f}); the trend misses tenths of the run by up to {abs(tenths).max():.1f} "
        "standard errors"
    )
