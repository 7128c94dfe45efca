"""The picture of `experiments.chunk_lm`: every seed of every arm, arms sorted by their mean."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from experiments.sweep import Outcome, values_by_arm
from fftlm_jax.training.figures import replace_figure

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_DOT, _MEAN = "#4477aa", "#cc3311"
_PANELS = (("bpb", "next byte, held out (bits per byte)"), ("chunk_bpb", "16 bytes at once, held out (bits per byte)"))


def draw(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draws next-byte and chunk bpb beside each other, both in the order of the first; lower is better."""
    first = values_by_arm(outcomes, "bpb")
    arms = sorted((arm for arm in first if first[arm]), key=lambda arm: -statistics.fmean(first[arm].values()))
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.4 * len(arms) + 1.5), sharey=True)
    for axis, (metric, label) in zip(axes, _PANELS, strict=True):
        table = values_by_arm(outcomes, metric)
        for row, arm in enumerate(arms):
            numbers = list(table[arm].values())
            axis.plot(numbers, [row] * len(numbers), "o", color=_DOT, ms=4, alpha=0.7)
            axis.plot(statistics.fmean(numbers), row, "|", color=_MEAN, ms=14, mew=2)
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
    axes[0].set_yticks(range(len(arms)), arms)
    figure.suptitle("Equal seconds of training: each seed (dots) and the mean (bar)")
    replace_figure(figure, file)
