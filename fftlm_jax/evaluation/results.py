"""The results of an evaluation: as JSON, as lines of text and as a picture.

The picture of `fftlm_jax.evaluate`: where bits are spent, what context is worth, what generated text is like.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from fftlm_jax.checkpoints.saved_run import SavedRun
from fftlm_jax.data import ByteSequence
from fftlm_jax.evaluation import context
from fftlm_jax.evaluation.generated_text import COPY_LENGTHS, GRAMS, PIECES, SHORTEST_COPY, Generated, statistics
from fftlm_jax.evaluation.held_out_bpb import (
    WORD_PLACES,
    Tally,
    bpb_by_position,
    bpb_by_range,
    bpb_by_word_place,
    chunk_bpb_by_offset,
    summary,
)
from fftlm_jax.generation import SamplingConfig, sampling_of
from fftlm_jax.recording.curves import replace_figure, set_title

_RANGES = 8  # Rows of the table of positions.
_GRAMS_SHOWN = (1, 2, 4, 8)


def results(saved: SavedRun, tally: Tally, text_bytes: int) -> dict[str, Any]:
    """Everything about held-out losses; positions and offsets count from 1 byte ahead of the input."""
    found: dict[str, Any] = {
        "step": saved.step,
        "text_bytes": text_bytes,
        "next_bytes_scored": int(tally.next_byte_count_T.sum()),
        **{name: round(value, 6) for name, value in summary(tally, saved.config.objective).items()},
        "bpb_by_position": _rounded(bpb_by_position(tally)),
        "bpb_by_word_place": dict(zip(WORD_PLACES, _rounded(np.array(list(bpb_by_word_place(tally).values()))))),
    }
    if tally.chunk_NC is not None:
        found["chunk_bytes_scored"] = int(tally.chunk_count_NC.sum())
        found["chunk_bpb_by_offset"] = _rounded(chunk_bpb_by_offset(tally))
    return found


def context_results(saved: SavedRun, text: ByteSequence, count: int) -> dict[str, Any]:
    """Bits per byte by length of context, of at most `count` bytes of the text."""
    lengths = context.context_lengths(saved.config.model)
    places = context.spaced_places(len(text), lengths[-1], count)
    bits = context.bits_by_context(saved, text, places, lengths)
    return {"bytes": len(places), "lengths": context.summary(bits, lengths)}


def generated_results(saved: SavedRun, generated: Generated, training_text: ByteSequence | None) -> dict[str, Any]:
    """Statistics of generated text, of the text that stands in its place, and how it was generated."""
    return {
        "pieces": PIECES,
        "piece_bytes": generated.written_PN.shape[1],
        "prompt_bytes": generated.prompt,
        "places": generated.places_P.tolist(),
        "seed": 0,
        "sampling": _sampling_in_force(saved),
        "training_bytes": None if training_text is None else len(training_text),
        "generated": statistics(generated.written_PN, training_text),
        "text": statistics(generated.true_PN, training_text),
    }


def table(found: dict[str, Any], tally: Tally) -> str:
    """The results as lines of text."""
    lines = [
        f"step {found['step']}, {found['text_bytes']:,} bytes of text",
        f"bpb        {found['bpb']:.4f}   next byte, {found['next_bytes_scored']:,} bytes, each scored once",
    ]
    if "chunk_bpb" in found:
        size = len(found["chunk_bpb_by_offset"])
        count = f"{found['chunk_bytes_scored']:,} bytes, each scored once"
        lines.append(f"chunk bpb  {found['chunk_bpb']:.4f}   {size} bytes at once, {count}")
    lines += ["", "place in the word        bpb"]
    lines += [f"{name:>22}   " + _cell(bits) for name, bits in found["bpb_by_word_place"].items()]
    lines += ["", "position in the window   bpb"]
    lines += [f"{f'{first} to {last}':>22}   {bits:.4f}" for first, last, bits in bpb_by_range(tally, _RANGES)]
    if "chunk_bpb_by_offset" in found:
        lines += ["", "byte of the chunk        bpb"]
        lines += [f"{offset:>22}   " + _cell(bits) for offset, bits in enumerate(found["chunk_bpb_by_offset"], start=1)]
    if found["by_context"]:
        lines += ["", *_context_lines(found["by_context"])]
    if found["generation"]:
        lines += ["", *_generation_lines(found["generation"])]
    return "\n".join([*lines, *(f"\n{note}" for note in found["notes"])])


def _context_lines(by_context: dict[str, Any]) -> list[str]:
    rows = by_context["lengths"]
    same = f"the same {by_context['bytes']:,} bytes"
    lines = [f"{'bytes of context':>22}   bpb      more than with {rows[-1]['context']}; {same}"]
    for row in rows:
        error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.4f}"
        more = "" if row is rows[-1] else f"   {row['more']:+.4f}{error}"
        lines.append(f"{row['context']:>22}   {row['bpb']:.4f}{more}")
    return lines


def _generation_lines(found: dict[str, Any]) -> list[str]:
    pair = found["generated"], found["text"]
    how = ", ".join(f"{name} {value}" for name, value in found["sampling"].items())
    size = f"{found['pieces']} x {found['piece_bytes']} bytes"
    lines = [
        f"{size} generated, each after {found['prompt_bytes']} bytes of text, beside what the text has there",
        f"({how}; seed {found['seed']})",
        f"{'':<34}generated      text",
    ]
    if found["training_bytes"] is not None:
        for length in COPY_LENGTHS:
            lines.append(_share_line(f"in a copy of {length} bytes or more", *(p["copied"][length] for p in pair)))
        longest = [str(p["longest_copy"] or f"under {SHORTEST_COPY}") for p in pair]
        lines.append(f"{'longest copy, bytes':<34}{longest[0]:>9}{longest[1]:>10}")
        lines.append(f"(copies of any of {found['training_bytes']:,} bytes of training text)")
    lines.append(_share_line("longest repeat in a piece", *(p["longest_repeat"] for p in pair)))
    for what, name in (("repeated {}-grams in a piece", "repeated_ngrams"), ("distinct {}-grams", "distinct_ngrams")):
        lines += [_share_line(what.format(n), *(p[name][n - 1] for p in pair)) for n in _GRAMS_SHOWN]
    return lines


def _sampling_in_force(saved: SavedRun) -> dict[str, Any]:
    """The rules of the run's samples that do anything."""
    rules, neutral = sampling_of(saved.config.sample), SamplingConfig()
    shown = {name: value for name, value in dataclasses.asdict(rules).items() if value != getattr(neutral, name)}
    return {"temperature": rules.temperature, **shown}


def _cell(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.4f}"


def _share_line(what: str, written: float, true: float) -> str:
    return f"{what:<34}{written:>9.1%}{true:>10.1%}"


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


matplotlib.use("Agg")

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
    set_title(figure, title)
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
