"""The picture of `fftlm_jax.evaluate`: bits per byte by position in the window and by byte of the chunk."""

import math
from pathlib import Path

import matplotlib
import numpy as np

from fftlm_jax.training.evaluation import Tally, bpb_by_position, bpb_by_range, chunk_bpb_by_offset
from fftlm_jax.training.figures import replace_figure

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_LINE, _POINT = "#4477aa", "#228833"


def draw(tally: Tally, file: Path, title: str) -> None:
    """Draws one panel, or two where chunks were scored, and replaces `file` in one move."""
    with_chunk = tally.chunk_NC is not None
    figure, axes = plt.subplots(1, 1 + with_chunk, figsize=(5.5 * (1 + with_chunk), 4), squeeze=False)
    position = np.arange(len(tally.next_byte_T)) + tally.first_position
    bits, mean = bpb_by_position(tally), tally.next_byte_T.sum() / tally.next_byte_count_T.sum() / np.log(2)
    # A position is scored once a window, so its own mean is noisy; far in, neighbours have almost the same context.
    axes[0, 0].plot(position, bits, ".", color=_LINE, alpha=0.25, ms=3, label="each position")
    ranges = bpb_by_range(tally, 4 * math.ceil(math.log2(len(position) + 1)))
    centres = [math.sqrt(first * last) for first, last, _ in ranges]
    axes[0, 0].plot(centres, [value for *_, value in ranges], color=_LINE, label="neighbours averaged")
    axes[0, 0].axhline(mean, color="gray", linestyle="--", linewidth=1, label=f"all: {mean:.3f}")
    axes[0, 0].set_xscale("log", base=2)
    axes[0, 0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0, 0].set_xlabel("bytes of context in the window")
    axes[0, 0].set_ylabel("bits per byte")
    axes[0, 0].set_title("next byte")
    axes[0, 0].legend()
    if with_chunk:
        by_offset = chunk_bpb_by_offset(tally)
        axes[0, 1].plot(range(1, len(by_offset) + 1), by_offset, "o-", color=_POINT, ms=4)
        mean = tally.chunk_NC.sum() / tally.chunk_count_NC.sum() / np.log(2)
        axes[0, 1].axhline(mean, color="gray", linestyle="--", linewidth=1, label=f"all: {mean:.3f}")
        axes[0, 1].set_xlabel("bytes ahead of the end of the context")
        axes[0, 1].set_title(f"{len(by_offset)} bytes at once")
        axes[0, 1].xaxis.get_major_locator().set_params(integer=True)
        axes[0, 1].legend()
    for axis in axes.flat:
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    replace_figure(figure, file)
