"""The picture of `experiments.chunk_lm`: every seed of every arm, arms sorted by their mean."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from experiments.arm_figure import arms_by_mean, draw_arms
from experiments.outcomes import Outcome
from experiments.sweep import values_by_arm
from fftlm_jax.recording.curves import replace_figure

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PANELS = (("bpb", "next byte, held out (bits per byte)"), ("chunk_bpb", "16 bytes at once, held out (bits per byte)"))


def draw(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draws next-byte and chunk bpb beside each other, both in the order of the first; lower is better."""
    arms = arms_by_mean(values_by_arm(outcomes, "bpb"))
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.4 * len(arms) + 1.5), sharey=True)
    for axis, (metric, label) in zip(axes, _PANELS, strict=True):
        draw_arms(axis, values_by_arm(outcomes, metric), arms, label)
    figure.suptitle("Equal seconds of training: each seed (dots) and the mean (bar)")
    replace_figure(figure, file)
