"""The picture of `experiments.unlock_lr`: the loss around the first raise, a curve a policy, a column a setting.

Batches differ in difficulty more than policies do, so the lower row shows each policy minus the first one on the same
batches of the same seed.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from experiments.around_raises import first_raise, losses
from experiments.outcomes import Outcome
from fftlm_jax.recording.curves import replace_figure
from fftlm_jax.recording.metrics import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_POLICIES = {"tooth x 1.0": "#cc3311", "tooth x 0.5": "#ee7733", "none x 1.0": "#4477aa", "none x 0.5": "#228833"}
_STEPS = np.arange(-30, 250)  # Around the raise.
_SMOOTHING = 10


def draw(outcomes: Sequence[Outcome], folder: Path, file: Path, settings: Sequence[str]) -> None:
    """Draws the mean over seeds of four policies' training losses, smoothed over 10 steps, and the range of the seeds.

    Args:
        outcomes: of all trials, run in `folder`.
        folder: of the experiment.
        file: PNG to write.
        settings: those in which no stage begins at the raise: elsewhere policies of one factor coincide at it.
    """
    figure, axes = plt.subplots(2, len(settings), figsize=(5.5 * len(settings), 7), squeeze=False, sharex=True)
    for column, setting in enumerate(settings):
        curves = {policy: _curves(outcomes, folder, f"{setting}: {policy}") for policy in _POLICIES}
        reference = curves[next(iter(_POLICIES))]
        for policy, by_seed in curves.items():
            _draw_range(axes[0, column], list(by_seed.values()), policy)
            shared = [by_seed[seed] - reference[seed] for seed in by_seed if seed in reference]
            _draw_range(axes[1, column], shared, policy)
        axes[0, column].set_title(setting)
        axes[0, column].legend(title="restart x factor")
        axes[1, column].set_xlabel("steps after the first raise")
    axes[0, 0].set_ylabel(f"training loss (nats), mean of {_SMOOTHING} steps")
    axes[1, 0].set_ylabel(f"minus {next(iter(_POLICIES))}, same batches")
    for axis in axes.flat:
        axis.axvline(0, color="#999933", linestyle="--", linewidth=1)
        axis.grid(alpha=0.25)
    replace_figure(figure, file)


def _curves(outcomes: Sequence[Outcome], folder: Path, arm: str) -> dict[int, np.ndarray]:
    """{seed: smoothed loss at `_STEPS` around the first raise} of an arm's finished trials."""
    curves = {}
    for outcome in outcomes:
        if outcome.trial.arm == arm and outcome.status == "finished":
            records = read_metrics(folder / outcome.trial.name / "metrics.jsonl")
            smooth = np.convolve(losses(records), np.ones(_SMOOTHING) / _SMOOTHING)
            curves[outcome.trial.seed] = smooth[first_raise(records) + _STEPS]
    return curves


def _draw_range(axis: Axes, curves: Sequence[np.ndarray], policy: str) -> None:
    if curves:
        values, color = np.array(curves), _POLICIES[policy]
        axis.plot(_STEPS, values.mean(axis=0), color=color, label=f"{policy}, {len(curves)} seeds")
        axis.fill_between(_STEPS, values.min(axis=0), values.max(axis=0), color=color, alpha=0.12, linewidth=0)
