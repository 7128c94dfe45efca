"""The picture of `fftlm_jax.evaluate`: where bits are spent, what context is worth, what generated text is like."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from fftlm_jax.evaluation.copies import SHORTEST_COPY
from fftlm_jax.evaluation.generated import COPY_LENGTHS, GRAMS
from fftlm_jax.training.evaluation import Tally, bpb_by_position, bpb_by_range, chunk_bpb_by_offset
from fftlm_jax.training.figures import replace_figure

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_LINE, _POINT, _CONTEXT, _TEXT = "#4477aa", "#228833", "#cc3311", "#999999"


def draw(tally: Tally, found: dict[str, Any], file: Path, title: str) -> None:
    """Draws a panel for whatever was evaluated, at most two in a row, and replaces `file` in one move."""
    panels: list[Callable[[Axes], None]] = [lambda axis: _draw_next_byte(axis, tally, found["by_context"])]
    if tally.chunk_NC is not None:
        panels.append(lambda axis: _draw_chunk(axis, tally))
    if found["generation"]:
        panels.append(lambda axis: _draw_variety(axis, found["generation"]))
        if found["generation"]["training_bytes"] is not None:
            panels.append(lambda axis: _draw_copies(axis, found["generation"]))
    columns = 2 if len(panels) == 4 else len(panels)
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.5 * columns, 4 * rows), squeeze=False)
    for axis, panel in zip(axes.flat, panels):
        panel(axis)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.legend()
    figure.suptitle(title)
    replace_figure(figure, file)


def _draw_next_byte(axis: Axes, tally: Tally, by_context: dict[str, Any] | None) -> None:
    position = np.arange(len(tally.next_byte_T)) + tally.first_position
    bits, mean = bpb_by_position(tally), tally.next_byte_T.sum() / tally.next_byte_count_T.sum() / np.log(2)
    # A position is scored once a window, so its own mean is noisy; far in, neighbours have almost the same context.
    axis.plot(position, bits, ".", color=_LINE, alpha=0.25, ms=3, label="each position of the window")
    ranges = bpb_by_range(tally, 4 * math.ceil(math.log2(len(position) + 1)))
    centres = [math.sqrt(first * last) for first, last, _ in ranges]
    axis.plot(centres, [value for *_, value in ranges], color=_LINE, label="neighbours averaged")
    if by_context:
        lengths, values = zip(*((row["context"], row["bpb"]) for row in by_context["lengths"]))
        axis.plot(
            lengths, values, "o-", color=_CONTEXT, ms=4, label=f"the same {by_context['bytes']:,} bytes, cut context"
        )
    axis.axhline(mean, color="gray", linestyle="--", linewidth=1, label=f"all: {mean:.3f}")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("bytes of context")
    axis.set_ylabel("bits per byte")
    axis.set_title("next byte")


def _draw_chunk(axis: Axes, tally: Tally) -> None:
    by_offset = chunk_bpb_by_offset(tally)
    axis.plot(range(1, len(by_offset) + 1), by_offset, "o-", color=_POINT, ms=4)
    mean = tally.chunk_NC.sum() / tally.chunk_count_NC.sum() / np.log(2)
    axis.axhline(mean, color="gray", linestyle="--", linewidth=1, label=f"all: {mean:.3f}")
    axis.set_xlabel("bytes ahead of the end of the context")
    axis.set_ylabel("bits per byte")
    axis.set_title(f"{len(by_offset)} bytes at once")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_copies(axis: Axes, generation: dict[str, Any]) -> None:
    place = np.arange(len(COPY_LENGTHS))
    for shift, name, color in ((-0.2, "generated", _CONTEXT), (0.2, "text", _TEXT)):
        shares = [100 * generation[name]["copied"][length] for length in COPY_LENGTHS]
        longest = generation[name]["longest_copy"] or f"under {SHORTEST_COPY}"
        label = f"{name}, longest copy {longest} bytes"
        axis.bar_label(axis.bar(place + shift, shares, 0.4, color=color, label=label), fmt="%.1f", fontsize=8)
    axis.set_xticks(place, [str(length) for length in COPY_LENGTHS])
    axis.set_ylim(0, 119)  # Room for the legend above full bars.
    axis.set_yticks(range(0, 101, 20))
    axis.set_xlabel("bytes or more that also occur in the training text")
    axis.set_ylabel("% of bytes in such a copy")
    axis.set_title(f"copied, of {generation['pieces']} x {generation['piece_bytes']} bytes")


def _draw_variety(axis: Axes, generation: dict[str, Any]) -> None:
    for name, color in (("generated", _CONTEXT), ("text", _TEXT)):
        distinct = 100 * np.array(generation[name]["distinct_ngrams"])
        label = f"{name}, longest repeat {generation[name]['longest_repeat']:.1%} of a piece"
        axis.plot(GRAMS, distinct, "o-", color=color, ms=4, label=label)
    axis.set_ylim(0, 119)  # Room for the legend.
    axis.set_yticks(range(0, 101, 20))
    axis.set_xlabel("bytes of an n-gram")
    axis.set_ylabel("% of n-grams that are distinct")
    axis.set_title("variety")
