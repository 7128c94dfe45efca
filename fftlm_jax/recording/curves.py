"""Draws `curves.png`: losses, learning rate, cutoff and gradient norm over steps.

Saving a picture so that whoever looks at it never sees half of one.

`curves.png`: losses in bits per byte, learning rate, cutoff and gradient norm over steps, raises marked.

Under Muon also rho, the radial part of its gradients. Warnings are marked where what they warn of begins.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from fftlm_jax.recording.metrics import Record

matplotlib.use("Agg")


def replace_figure(figure: Figure, file: Path) -> None:
    """Lays a figure out, replaces `file` by it in one move, and closes it."""
    figure.tight_layout()
    temporary = file.with_suffix(".tmp.png")
    try:
        figure.savefig(temporary, dpi=100)
        temporary.rename(file)
    finally:
        plt.close(figure)
        temporary.unlink(missing_ok=True)  # Of a full disk.


matplotlib.use("Agg")

_TRAIN, _CHUNK, _EVAL, _RAISE, _WARNING = "#4477aa", "#228833", "#cc3311", "#999933", "#aa3377"
_SMOOTHING_WINDOWS = 100  # The loss line is smoothed over a hundredth of the run.


def draw_curves(records: Sequence[Record], file: Path, title: str) -> None:
    """Draws the records of a `metrics.jsonl` and replaces `file` in one move."""
    train = [r for r in records if r["kind"] == "train" and not r.get("nonfinite")]
    evals = [r for r in records if r["kind"] == "eval" and not r.get("nonfinite")]
    raises = [r for r in records if r.get("event") == "cutoff_raised"]
    radial = [r for r in records if r["kind"] == "radial"]
    panels = 5 if radial else 4
    heights = (3, 1.3, 1, 1.3, 1.3)[:panels]
    figure, axes = plt.subplots(panels, 1, figsize=(9, 2 + 2 * panels), sharex=True, height_ratios=heights)
    steps = np.array([r["step"] for r in train])
    _draw_losses(axes[0], train, evals)
    axes[1].plot(steps, [r["lr"] for r in train], color=_TRAIN)
    axes[1].set_ylabel("learning rate")
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[2].step(steps, [r["cutoff"] for r in train], where="pre", color=_TRAIN)
    axes[2].set_ylabel("cutoff (bins)")
    axes[2].set_ylim(bottom=0)
    axes[3].plot(steps, [r["grad_norm"] for r in train], color=_TRAIN, linewidth=0.6)
    axes[3].set_ylabel("gradient norm\n(before clipping)")
    axes[3].set_yscale("log")
    axes[3].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[3].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[3].yaxis.set_minor_locator(NullLocator())
    if radial:
        _draw_rho(axes[4], radial)
    axes[-1].set_xlabel("step")
    for axis in axes:
        axis.grid(alpha=0.25)
        for event in raises:
            axis.axvline(event["step"], color=_RAISE, linestyle="--", linewidth=1)
    for event in raises:
        axes[0].annotate(
            f"{event['from']}→{event['to']}",
            (event["step"], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, -4),
            textcoords="offset points",
            fontsize=8,
            color=_RAISE,
            rotation=90,
            va="top",
        )
    _mark_warnings(axes[0], [r for r in records if r.get("event") == "warning"])
    figure.suptitle(title)
    replace_figure(figure, file)


def _mark_warnings(axis: Axes, warnings: Sequence[Record]) -> None:
    """A triangle at the top where what is warned of begins, and the names of the rules beside it."""
    names: dict[int, list[str]] = {}
    for event in warnings:
        names.setdefault(event["at"], []).append(event["rule"])
    left, right = axis.get_xlim()
    for step, rules in names.items():
        is_late = step > left + 0.75 * (right - left)  # The names must not leave the picture.
        axis.plot(step, 1.0, "v", color=_WARNING, transform=axis.get_xaxis_transform(), clip_on=False)
        axis.annotate(
            "\n".join(rules),
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-10 if is_late else 10, -8),
            textcoords="offset points",
            fontsize=7,
            color=_WARNING,
            ha="right" if is_late else "left",
            va="top",
        )


def _draw_rho(axis: Axes, radial: Sequence[Record]) -> None:
    """Absolute rho, a line per group: signs of single matrices would cancel in the mean."""
    for group in radial[0]["groups"]:
        points = [(r["step"], r["groups"][group]["abs_rho"]) for r in radial]
        axis.plot(*zip(*points), ".-", ms=3, label=group)
    axis.set_ylabel("mean |rho|")
    axis.set_yscale("log")
    axis.legend()


def _draw_losses(axis: Axes, train: Sequence[Record], evals: Sequence[Record]) -> None:
    """Training and held-out losses on one scale: bits per byte, whatever the objective adds up."""
    lines = [("training, next byte", [(r["step"], r.get("next_byte_loss", r["loss"])) for r in train], _TRAIN)]
    # A resumed run may have been given another objective, so not every record need have the same losses.
    if any("chunk_loss" in r for r in train):
        lines.append(("training, chunk", [(r["step"], r["chunk_loss"]) for r in train if "chunk_loss" in r], _CHUNK))
    shown = [value for r in evals for name, value in r.items() if name.endswith("bpb")]
    for label, points, color in lines:
        steps, nats = np.array(points).reshape(-1, 2).T
        bits = nats / np.log(2)
        width = max(1, len(bits) // _SMOOTHING_WINDOWS)
        axis.plot(steps, bits, color=color, alpha=0.25, linewidth=0.6)
        if len(bits):
            smooth = np.convolve(bits, np.ones(width) / width, mode="valid")
            axis.plot(steps[width - 1 :], smooth, color=color, label=label)
        # The first steps fall from the loss of a uniform guess and would flatten everything after them.
        shown += bits[len(bits) // 50 :].tolist()
    axis.plot([r["step"] for r in evals], [r["bpb"] for r in evals], "o-", color=_EVAL, ms=4, label="held out, bpb")
    for name, style, label in (("chunk_bpb", "s--", "chunk bpb"), ("ema_bpb", "^:", "bpb of the average")):
        points = [(r["step"], r[name]) for r in evals if name in r]
        if points:
            axis.plot(*zip(*points), style, color=_EVAL, ms=3, label=f"held out, {label}")
    if shown:
        axis.set_ylim(min(shown) - 0.1, max(np.percentile(shown, 99.5), *(r["bpb"] for r in evals), 0) + 0.3)
    axis.set_ylabel("bits per byte")
    axis.legend(loc="lower left")
