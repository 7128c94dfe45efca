"""What a model writes beside what was really written: how much is copied from the training text, how much repeats.

The model continues held-out text at evenly spaced places; what the text itself has there is the measure of how much is
copied and repeated anyway. Shapes: P pieces of text, N bytes of each.
"""

from typing import Any, NamedTuple

import numpy as np

from fftlm_jax.data import ByteSequence, windows_at
from fftlm_jax.evaluation.context import longest_context, spaced_places
from fftlm_jax.evaluation.copies import find_copies
from fftlm_jax.evaluation.grams import distinct_share, longest_repeat, repeated_share
from fftlm_jax.generation import decoder_for, sampling_of
from fftlm_jax.model import build
from fftlm_jax.training.saved_run import SavedRun

PIECES = 8
GRAMS = range(1, 9)
COPY_LENGTHS = (16, 32, 64)  # Bytes that count as a copy: a phrase, half a line, a line.
SHORTEST_TEXT = PIECES * max(COPY_LENGTHS)


class Generated(NamedTuple):
    """Pieces that a model wrote, and those that the text has in their place, both uint8 [P, N]."""

    written_PN: np.ndarray
    true_PN: np.ndarray
    places_P: np.ndarray  # Of the text, where they begin.
    prompt: int  # Bytes of text before each that the model was given.


def generate(saved: SavedRun, text: ByteSequence, size: int) -> Generated | None:
    """Lets a model continue a text at `PIECES` places, `size` bytes in all, as the run's samples are drawn.

    The pieces are the rows of seed 0. A prompt is all that the model can see. None where the text is too short for
    pieces that do not overlap.
    """
    prompt, length = longest_context(saved.config.model), size // PIECES
    if len(text) < prompt + PIECES * length:
        return None
    places_P = spaced_places(len(text), prompt, PIECES)
    prompts = [before.tobytes() for before in windows_at(text, places_P - prompt, prompt)]
    decoder = decoder_for(saved.config.model, build(saved.config.model)[0], saved.low_pass)
    pieces = decoder.generate(saved.params, prompts, length, sampling_of(saved.config.sample))
    written = [np.frombuffer(piece, np.uint8) for piece in pieces]
    return Generated(np.stack(written), windows_at(text, places_P, length), places_P, prompt)


def statistics(pieces_PN: np.ndarray, training_text: ByteSequence | None) -> dict[str, Any]:
    """Copies (where there is a training text), repetition within pieces, and variety of all pieces together."""
    found: dict[str, Any] = {
        "longest_repeat": _rounded(np.mean([longest_repeat(piece) for piece in pieces_PN]) / pieces_PN.shape[1]),
        "repeated_ngrams": [_rounded(repeated_share(pieces_PN, n)) for n in GRAMS],
        "distinct_ngrams": [_rounded(distinct_share(pieces_PN, n)) for n in GRAMS],
    }
    if training_text is not None:
        copies = find_copies(pieces_PN, training_text, COPY_LENGTHS)
        found["copied"] = {length: _rounded(share) for length, share in copies.share.items()}
        found["longest_copy"] = copies.longest
        found["longest_copy_text"] = copies.example.decode("latin-1").encode("unicode_escape").decode()
    return found


def _rounded(value: float) -> float:
    return round(float(value), 4)
