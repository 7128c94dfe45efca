"""Draws `curves.png`: losses in bits per byte, learning rate, cutoff and gradient norm over steps, raises marked.

Under Muon also rho, the radial part of its gradients. Warnings are marked where what they warn of begins. Long runs
are drawn thinned, each line with the extremes of every stretch, so that a picture takes the same time at any step.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from fftlm_jax.recording.history import History, Record, is_number
from fftlm_jax.runtime.untrusted import printable

matplotlib.use("Agg")

_TRAIN, _CHUNK, _EVAL, _RAISE, _WARNING = "#4477aa", "#228833", "#cc3311", "#999933", "#aa3377"
_SMOOTHING_WINDOWS = 100  # The loss line is smoothed over a hundredth of the run.
_MOST_POINTS = 2000  # Of a line: twice as many as the picture has columns.


def set_title(figure: Figure, title: str) -> None:
    """Puts a title over a figure, as it is: names of folders may hold dollar signs, or characters that no font has."""
    figure.suptitle(printable(title), parse_math=False)


def replace_figure(figure: Figure, file: Path, area: tuple[float, float, float, float] = (0, 0, 1, 1)) -> None:
    """Lays a figure out, replaces `file` by it in one move, and closes it: nobody ever sees half of one.

    Args:
        figure: what to write.
        file: a PNG.
        area: left, bottom, right and top of what the axes may take, as parts of the figure.

    Raises:
        OSError: if it cannot be drawn or written. Matplotlib answers settings and fonts that it lacks by errors of any
            kind, and no run should end by its picture.
    """
    temporary = file.with_name(f"{file.name}.tmp.png")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)  # Shown as boxes.
            figure.tight_layout(rect=area)
            figure.savefig(temporary, dpi=100)
        temporary.rename(file)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"it cannot be drawn: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    finally:
        plt.close(figure)
        temporary.unlink(missing_ok=True)  # Of a full disk.


def use_log_scale(axis: Axes) -> None:
    """Gives what is drawn a logarithmic vertical axis with plain numbers: 0.5, 1, 2, or decades where it spans many."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def thinned(x: np.ndarray, y: np.ndarray, most: int = _MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points of a line, [n]: of every stretch its lowest and its highest, in order.

    Points that are NaN are left out. Lines that are short enough keep all others.
    """
    is_there = ~np.isnan(y)
    x, y = x[is_there], y[is_there]
    if len(x) <= most:
        return x, y
    stretches = most // 2 - 1
    width = len(x) // stretches
    rows = y[: stretches * width].reshape(stretches, width)
    starts, rest = width * np.arange(stretches), np.arange(stretches * width, len(x))
    kept = [starts + rows.argmin(axis=1), starts + rows.argmax(axis=1)]
    kept += [rest[[y[rest].argmin(), y[rest].argmax()]]] if len(rest) else []
    kept = np.unique(np.concatenate(kept))
    return x[kept], y[kept]


def draw_curves(history: History, file: Path, title: str) -> None:
    """Draws what a run has recorded and replaces `file` in one move."""
    train, raises = history.train, history.raises
    panels = 5 if history.rho else 4
    heights = (3, 1.3, 1, 1.3, 1.3)[:panels]
    figure, axes = plt.subplots(panels, 1, figsize=(9, 2 + 2 * panels), sharex=True, height_ratios=heights)
    _draw_losses(axes[0], history)
    axes[1].plot(*thinned(train["step"], train["lr"]), color=_TRAIN)
    axes[1].set_ylabel("learning rate")
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[2].step(*_changes(train["step"], train["cutoff"]), where="pre", color=_TRAIN)
    axes[2].set_ylabel("cutoff (bins)")
    axes[2].set_ylim(bottom=0)
    axes[3].plot(*thinned(train["step"], train["grad_norm"]), color=_TRAIN, linewidth=0.6)
    axes[3].set_ylabel("gradient norm\n(before clipping)")
    use_log_scale(axes[3])
    if history.rho:
        _draw_rho(axes[4], history)
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
    _mark_warnings(axes[0], history.warnings)
    set_title(figure, title)
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


def _changes(steps: np.ndarray, cutoffs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points on both sides of every change of a line that rarely changes, and its two ends."""
    changes = np.flatnonzero(np.diff(cutoffs))
    kept = np.unique([0, *changes, *(changes + 1), len(steps) - 1])[: len(steps)]
    return steps[kept], cutoffs[kept]


def _draw_rho(axis: Axes, history: History) -> None:
    """Absolute rho, a line per group: signs of single matrices would cancel in the mean."""
    for group, points in history.rho.items():
        axis.plot(*thinned(points["step"], points["abs_rho"]), ".-", ms=3, label=group)
    axis.set_ylabel("mean |rho|")
    use_log_scale(axis)
    axis.legend()


def _draw_losses(axis: Axes, history: History) -> None:
    """Training and held-out losses on one scale: bits per byte, whatever the objective adds up."""
    train = history.train
    next_byte = np.where(np.isnan(train["next_byte_loss"]), train["loss"], train["next_byte_loss"])
    evals = [r for r in history.evaluations if is_number(r.get("bpb"))]
    shown = [np.array([r[name] for r in evals for name in r if name.endswith("bpb") and is_number(r[name])])]
    for label, nats, color in (("next byte", next_byte, _TRAIN), ("chunk", train["chunk_loss"], _CHUNK)):
        is_there = ~np.isnan(nats)  # A resumed run may have been given another objective.
        steps, bits = train["step"][is_there], nats[is_there] / np.log(2)
        if not len(bits):
            continue
        axis.plot(*thinned(steps, bits), color=color, alpha=0.25, linewidth=0.6)
        width = max(1, len(bits) // _SMOOTHING_WINDOWS)
        sums = np.concatenate([[0.0], np.cumsum(bits)])
        smooth = (sums[width:] - sums[:-width]) / width
        axis.plot(*thinned(steps[width - 1 :], smooth), color=color, label=f"training, {label}")
        # The first steps fall from the loss of a uniform guess and would flatten everything after them.
        shown.append(bits[len(bits) // 50 :])
    axis.plot([r["step"] for r in evals], [r["bpb"] for r in evals], "o-", color=_EVAL, ms=4, label="held out, bpb")
    for name, style, label in (("chunk_bpb", "s--", "chunk bpb"), ("ema_bpb", "^:", "bpb of the average")):
        points = [(r["step"], r[name]) for r in evals if is_number(r.get(name))]
        if points:
            axis.plot(*zip(*points), style, color=_EVAL, ms=3, label=f"held out, {label}")
    values = np.concatenate(shown)
    if len(values):
        highest = max(np.percentile(values, 99.5), *(r["bpb"] for r in evals), 0)
        axis.set_ylim(values.min() - 0.1, highest + 0.3)
    axis.set_ylabel("bits per byte")
    axis.legend(loc="lower left")
