"""The picture of `experiments.raft_lr`: held-out rates over cycles, a line an arm and the range of its seeds."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from experiments.outcomes import Outcome
from fftlm_jax.raft.journal import Journal
from fftlm_jax.recording.curves import replace_figure

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_COLORS = ("#cc3311", "#4477aa", "#228833", "#ee7733", "#66ccee", "#aa3377", "#999933", "#000000", "#777777")


def draw(outcomes: Sequence[Outcome], folder: Path, file: Path) -> None:
    """Draws all finished trials that were run in `folder`: rates on the left, learning rates on the right."""
    arms = list(dict.fromkeys(o.trial.arm for o in outcomes if o.status == "finished"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), width_ratios=(2, 1))
    for number, arm in enumerate(arms):
        runs = [
            Journal(folder / o.trial.name).results() for o in outcomes if o.trial.arm == arm and o.status == "finished"
        ]
        rates = 100 * np.array([[result.held_out.rate for result in results] for results in runs])
        color, style = _COLORS[number % len(_COLORS)], ("-", "--", ":")[number // len(_COLORS) % 3]
        cycles = np.arange(rates.shape[1])
        left.plot(cycles, rates.mean(axis=0), style, color=color, marker=".", label=arm)
        left.fill_between(cycles, rates.min(axis=0), rates.max(axis=0), color=color, alpha=0.12, linewidth=0)
        lrs = [result.train.lr if result.train else np.nan for result in runs[0][1:]]
        right.plot(cycles[1:], lrs, style, color=color, marker=".")
    left.set_xlabel("cycle")
    left.set_ylabel("held-out problems answered right, %")
    right.set_xlabel("cycle")
    right.set_ylabel("learning rate")
    right.set_ylim(bottom=0)
    left.legend(fontsize=8, ncols=1 + len(arms) // 10)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    replace_figure(figure, file)
