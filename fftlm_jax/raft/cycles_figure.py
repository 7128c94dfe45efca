"""`cycles.png`: held-out rates with their intervals, losses of all steps, learning rates, and what was kept."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from fftlm_jax.raft.cycle_result import CycleResult, best_of
from fftlm_jax.recording.curves import replace_figure, set_title

matplotlib.use("Agg")

_BLUE, _GREEN, _RED, _OLIVE, _PURPLE = "#4477aa", "#228833", "#cc3311", "#999933", "#aa3377"
_SURE = 1.96
_MOST_NAMES = 12  # Of cycles, above the losses.
_MANY_STEPS = 300  # Too many for a dot each.
_WIDE = 10.0  # Losses that span this factor are drawn on a logarithmic scale.


def draw_cycles(results: Sequence[CycleResult], file: Path, title: str) -> None:
    """Draws what there is of these cycles, cycle 0 first, and replaces `file` in one move."""
    panels = [_draw_rates]
    if any(r.train and r.train.losses for r in results):
        panels += [_draw_losses, _draw_learning_rates]
    if any(r.samples for r in results):
        panels.append(_draw_samples)
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    figure, axes = plt.subplots(rows, columns, figsize=(6.5 * columns, 4 * rows), squeeze=False)
    for axis, draw in zip(axes.flat, panels):
        draw(axis, results)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    set_title(figure, title)
    replace_figure(figure, file)


def _draw_rates(axis: Axes, results: Sequence[CycleResult]) -> None:
    """The rate that cycles are compared by with its interval, lines from parent to child; the other one beside it."""
    cycles, scores = [r.cycle for r in results], [r.held_out for r in results]
    is_greedy = all(s.rate == s.greedy_rate for s in scores)
    name, other = ("greedy", "sampled") if is_greedy else ("sampled", "greedy")
    others = [s.sampled_rate if is_greedy else s.greedy_rate for s in scores]
    k = max(scores[-1].pass_at, key=int, default="1")
    if k != "1":
        axis.plot(cycles, [s.pass_at.get(k, np.nan) for s in scores], "^:", color=_OLIVE, ms=4, label=f"pass@{k}")
    axis.plot(cycles, others, "s--", color=_GREEN, ms=4, label=other)
    rates, errors = [s.rate for s in scores], [_SURE * s.se for s in scores]
    axis.errorbar(cycles, rates, errors, fmt="o", color=_BLUE, ms=4, capsize=3, label=f"{name}, with 95 % interval")
    for result in results[1:]:
        parent = results[result.parent]
        ends = (parent.cycle, result.cycle), (parent.held_out.rate, result.held_out.rate)
        axis.plot(*ends, color=_BLUE, linewidth=1.5)
    best = best_of(results)
    label = f"best: cycle {best.cycle}, {best.held_out.rate:.1%}"
    axis.plot(best.cycle, best.held_out.rate, "*", color=_RED, ms=13, zorder=5, label=label)
    _count_cycles(axis, results)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axis.set_ylim(bottom=0)
    axis.set_title("held-out prompts answered right")
    axis.legend(fontsize=8)


def _draw_losses(axis: Axes, results: Sequence[CycleResult]) -> None:
    """Losses of all steps one after the other, cycles side by side with their numbers on top."""
    trained = [r for r in results if r.train and r.train.losses]
    every, start, shown = -(-len(trained) // _MOST_NAMES), 0, []
    style = {"marker": ".", "ms": 3} if sum(len(r.train.losses) for r in trained) < _MANY_STEPS else {}
    for index, result in enumerate(trained):
        losses = result.train.losses
        axis.plot(np.arange(len(losses)) + start + 1, losses, color=_BLUE, linewidth=0.8, **style)
        if index:
            axis.axvline(start + 0.5, color=_OLIVE, linestyle="--", linewidth=0.8)
        if index % every == 0:
            place = (start + (len(losses) + 1) / 2, 1.01)
            axis.text(
                *place, str(result.cycle), transform=axis.get_xaxis_transform(), fontsize=8, color=_OLIVE, ha="center"
            )
        start += len(losses)
        shown += [loss for loss in losses if np.isfinite(loss) and loss > 0]
    if shown and max(shown) > _WIDE * min(shown):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlim(0.5, start + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("step of all cycles (their numbers on top)")
    axis.set_ylabel("nats per byte")
    axis.set_title("training loss (every cycle has a fresh Adam)", pad=16)


def _draw_learning_rates(axis: Axes, results: Sequence[CycleResult]) -> None:
    trained = [r for r in results if r.train]
    axis.plot([r.cycle for r in trained], [r.train.lr for r in trained], "o-", color=_BLUE, ms=4)
    _count_cycles(axis, results)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useOffset=False)
    axis.set_ylim(bottom=0)
    axis.set_title("learning rate", pad=16)


def _draw_samples(axis: Axes, results: Sequence[CycleResult]) -> None:
    """Shares as lines, and the number kept as bars behind them, on a scale of its own."""
    sampled = [r for r in results if r.samples]
    cycles = [r.cycle for r in sampled]
    count = axis.twinx()
    count.bar(cycles, [r.samples.kept for r in sampled], color="0.88", width=0.6, label="kept (right scale)")
    count.set_ylabel("completions kept")
    count.yaxis.set_major_locator(MaxNLocator(integer=True))
    for name, style, color, values in (
        ("right before training", "o-", _BLUE, [r.samples.rate for r in sampled]),
        ("coverage", "s--", _GREEN, [r.samples.coverage for r in sampled]),
        ("unique / valid", "^:", _PURPLE, [r.samples.unique_valid for r in sampled]),
    ):
        axis.plot(cycles, values, style, color=color, ms=4, label=name)
    axis.set_zorder(count.get_zorder() + 1)  # Lines in front of the bars.
    axis.patch.set_visible(False)
    axis.set_ylim(0, 1.05)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _count_cycles(axis, results)
    axis.set_title("samples on the training prompts", pad=30)
    handles = [*axis.get_legend_handles_labels()[0], *count.get_legend_handles_labels()[0]]
    axis.legend(handles=handles, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _count_cycles(axis: Axes, results: Sequence[CycleResult]) -> None:
    axis.set_xlabel("cycle")
    axis.set_xlim(-0.5, results[-1].cycle + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
