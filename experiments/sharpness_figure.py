"""The picture of `experiments.sharpness`: curvature, limits and cosines over the cutoff, every seed shown."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from experiments.sharpness_bench import COMPARISONS, COSINE_STEPS, CUTOFFS, MEASURES, TRIAL_STEPS, View
from fftlm_jax.recording.curves import replace_figure

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_COLORS = {"own": "#4477aa", "raised": "#ee6677", "cut": "#228833"}
_LABELS = {"own": "trained at each cutoff", "raised": "trained at 1/4, raised", "cut": "trained at full, cut"}
_CUTOFF_COLORS = dict(zip(CUTOFFS, ("#66ccee", "#4477aa", "#222255"), strict=True))
_SHIFT = 0.07  # Between the dots of the comparisons.


def draw(rates: Sequence[float], views: Sequence[View], file: Path) -> None:
    """Draws all views; `rates` is the grid of learning rates of their loss changes."""
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.2))
    for axis, name in zip(axes[0], ("sharpness", "adam_sharpness", "bounded_lr"), strict=True):
        for number, comparison in enumerate(COMPARISONS):
            _over_cutoffs(axis, views, comparison, name, (number - 1) * _SHIFT)
        axis.set_yscale("log")
        axis.set_title(MEASURES[name].words, fontsize=9)
    later = {"color": _COLORS["raised"], "style": "s:", "label": f"raised, {COSINE_STEPS} steps later"}
    _over_cutoffs(axes[0, 1], views, "raised", "adam_sharpness_later", 2 * _SHIFT, **later)
    for axis, comparison in zip(axes[1], ("own", "raised"), strict=False):
        _loss_changes(axis, rates, [v for v in views if COMPARISONS[comparison](v.trained, v.viewed)])
        axis.set_title(f"change of the loss in {TRIAL_STEPS} steps (nats),\n{_LABELS[comparison]}", fontsize=9)
        axis.set_xlabel("learning rate")
    kinds = {
        "cosine_batches": "mini-batches",
        "cosine_fixed": "one batch, before and after",
        "cosine_differences": "its changes",
    }
    for color, (name, label) in zip(("#4477aa", "#aa3377", "#ccbb44"), kinds.items(), strict=True):
        _over_cutoffs(axes[1, 2], views, "own", name, 0.0, color=color, label=label)
    axes[1, 2].axhline(0, color="black", linewidth=0.8)
    axes[1, 2].set_title("cosine of successive gradients,\ntrained at each cutoff", fontsize=9)
    for axis in (*axes[0], axes[1, 2]):
        axis.set_xticks(range(len(CUTOFFS)), list(CUTOFFS))
        axis.set_xlabel("cutoff")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
    for axis in (axes[0, 1], *axes[1]):
        if axis.get_legend_handles_labels()[0]:  # A single cutoff has dots only, and nothing to name.
            axis.legend(fontsize=7)
    replace_figure(figure, file)


def _over_cutoffs(
    axis: Axes,
    views: Sequence[View],
    comparison: str,
    name: str,
    shift: float,
    *,
    color: str | None = None,
    style: str = "o-",
    label: str | None = None,
) -> None:
    """A dot for every seed, a line through the means."""
    color, label = color or _COLORS[comparison], label or _LABELS[comparison]
    means = []
    for place, cutoff in enumerate(CUTOFFS):
        values = [
            np.mean(v.values[name])
            for v in views
            if v.viewed == cutoff and COMPARISONS[comparison](v.trained, cutoff) and name in v.values
        ]
        axis.plot([place + shift] * len(values), values, style[0], color=color, ms=3, alpha=0.5)
        if values:
            means.append((place + shift, np.mean(values)))
    if len(means) > 1:
        axis.plot(*zip(*means, strict=True), style[1:], color=color, label=label)


def _loss_changes(axis: Axes, rates: Sequence[float], views: Sequence[View]) -> None:
    """A thin line for every seed (mean over the orders of the data), a thick one for the mean of a cutoff."""
    for cutoff, color in _CUTOFF_COLORS.items():
        changes = np.array([np.mean(np.array(v.loss_changes, float), axis=0) for v in views if v.viewed == cutoff])
        if changes.size:
            axis.plot(rates, changes.T, color=color, linewidth=0.6, alpha=0.5)
            axis.plot(rates, changes.mean(axis=0), color=color, linewidth=2, label=f"cutoff {cutoff}")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xscale("log")
