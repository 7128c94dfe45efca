"""The picture of `experiments.curriculum_ablation`: every seed of every arm, and where in words the bits go."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from experiments.arm_figure import arms_by_mean, draw_arms
from experiments.outcomes import Outcome
from experiments.sweep import values_by_arm
from fftlm_jax.recording.curves import replace_figure
from fftlm_jax.recording.metrics import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_PLACES = {"word_first": ("first bytes of words", "#cc3311"), "word_inner": ("inner bytes", "#4477aa")}
_STYLES = ("-", "--")


def draw(outcomes: Sequence[Outcome], folder: Path, file: Path, watched: Sequence[str]) -> None:
    """Left: final bpb, arms sorted by their mean, lower is better. Right: bpb by place in the word of two arms."""
    table = values_by_arm(outcomes, "bpb")
    arms = arms_by_mean(table)
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 0.3 * len(arms) + 2), width_ratios=(3, 2))
    draw_arms(left, table, arms, "held out (bits per byte)")
    left.set_title("each seed (dots) and the mean (bar)")
    for arm, style in zip(watched, _STYLES):
        _places(right, [folder / o.trial.name / "metrics.jsonl" for o in outcomes if o.trial.arm == arm], arm, style)
    right.set_xlabel("step")
    right.set_ylabel("bits per byte, mean of the seeds")
    right.set_title("where in a word")
    right.legend()
    right.grid(alpha=0.25)
    replace_figure(figure, file)


def _places(axis: Axes, files: Sequence[Path], arm: str, style: str) -> None:
    runs = [{r["step"]: r["bpb_by_word_place"] for r in read_metrics(f) if r["kind"] == "eval"} for f in files]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    for place, (label, color) in _PLACES.items():
        means = [np.mean([run[step][place] for run in runs]) for step in steps]
        axis.plot(steps, means, style, color=color, label=f"{label}, {arm}")
