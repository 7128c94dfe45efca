"""The numbers of an evaluation as JSON takes them, and as lines of text."""

import dataclasses
from typing import Any

import numpy as np

from fftlm_jax.data import ByteSequence
from fftlm_jax.evaluation import context
from fftlm_jax.evaluation.copies import SHORTEST_COPY
from fftlm_jax.evaluation.generated import COPY_LENGTHS, PIECES, Generated, statistics
from fftlm_jax.generation import SamplingConfig, sampling_of
from fftlm_jax.model.word_places import WORD_PLACES
from fftlm_jax.training.evaluation import (
    Tally,
    bpb_by_position,
    bpb_by_range,
    bpb_by_word_place,
    chunk_bpb_by_offset,
    summary,
)
from fftlm_jax.training.saved_run import SavedRun

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
