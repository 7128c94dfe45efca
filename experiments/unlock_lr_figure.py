"""The picture of `experiments.unlock_lr`: the loss around the first raise, a curve a policy, a panel a setting."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from experiments.around_raises import first_raise, losses
from experiments.sweep import Outcome
from fftlm_jax.training.figures import replace_figure
from fftlm_jax.training.metrics import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_SHOWN = {"tooth x 1.0": "#cc3311", "tooth x 0.5": "#ee7733", "none x 1.0": "#4477aa", "none x 0.5": "#228833"}
_BEFORE, _AFTER, _SMOOTHING = 30, 120, 10


def draw(outcomes: Sequence[Outcome], folder: Path, file: Path, settings: Iterable[str]) -> None:
    """Draws the mean training loss over seeds of four policies, smoothed over 10 steps, and the range of the seeds."""
    settings = list(settings)
    figure, axes = plt.subplots(2, (len(settings) + 1) // 2, figsize=(12, 8), squeeze=False)
    for axis, setting in zip(axes.flat, settings):
        for policy, color in _SHOWN.items():
            names = [o.trial.name for o in outcomes if o.trial.arm == f"{setting}: {policy}" and o.status == "finished"]
            _curve(axis, [folder / name / "metrics.jsonl" for name in names], policy, color)
        axis.axvline(0, color="#999933", linestyle="--", linewidth=1)
        axis.set_title(setting)
        axis.set_xlabel("steps after the first raise")
        axis.set_ylabel("training loss (nats), mean of 10 steps")
        axis.grid(alpha=0.25)
        axis.legend(title="restart x factor")
    figure.suptitle("The loss around a raise: mean and range of the seeds, all on the same batches")
    replace_figure(figure, file)


def _curve(axis: Axes, files: Sequence[Path], label: str, color: str) -> None:
    windows = []
    for file in files:
        records = read_metrics(file)
        step, loss = first_raise(records), losses(records)
        windows.append(np.convolve(loss, np.ones(_SMOOTHING) / _SMOOTHING)[step - _BEFORE : step + _AFTER])
    if windows:
        steps, values = np.arange(-_BEFORE, _AFTER) + 1, np.array(windows)
        axis.plot(steps, values.mean(axis=0), color=color, label=f"{label}, {len(windows)} seeds")
        axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.12, linewidth=0)
