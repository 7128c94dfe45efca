"""What a model writes: how much is copied from the training text, how much repeats, how varied it is.

An n-gram is a substring of n bytes. Nothing is hashed, so nothing can collide: up to 8 bytes are an integer of 64 bits,
and a longer substring is named by the pair of its first and last halves (Karp, Miller and Rosenberg, STOC 1972).
Shapes: P pieces of text, N bytes of each. A gram never spans two pieces.

The text is short, the corpus long. Every substring of 8 bytes of the corpus is compared, as one integer, with those of
the text. Of what remains, pairs that lie 8, 16, ... apart make substrings of 16, 32, ... bytes (see `grams`), and few
places survive each doubling. The only hash is a filter in front of the comparison, so no collision passes for a copy.
Shapes: P pieces of text, N bytes of each, W grams of a piece, M places of the corpus.

The model continues held-out text at evenly spaced places; what the text itself has there is the measure of how much is
copied and repeated anyway. Shapes: P pieces of text, N bytes of each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fftlm_jax.checkpoints.saved_run import SavedRun
from fftlm_jax.data import ByteSequence, windows_at
from fftlm_jax.evaluation.context import longest_context, spaced_places
from fftlm_jax.generation import decoder_for, sampling_of
from fftlm_jax.model import build

LONGEST_WORD = 8


def words(text: np.ndarray, length: int) -> np.ndarray:
    """Every substring of `length` (1..8) bytes as an integer: uint8 [..., N] -> uint64 [..., N - length + 1]."""
    if not 1 <= length <= LONGEST_WORD:
        raise ValueError(f"a word has 1 to {LONGEST_WORD} bytes, not {length}")
    count = max(0, text.shape[-1] - length + 1)
    found = np.zeros((*text.shape[:-1], count), np.uint64)
    for i in range(length):
        found |= text[..., i : i + count].astype(np.uint64) << np.uint64(8 * i)
    return found


def names(text: np.ndarray, length: int) -> np.ndarray:
    """Names of all substrings of `length` bytes: int64 [..., N - length + 1], equal exactly where they are equal.

    Names count from 0 and are meaningful within one call only.
    """
    if length <= LONGEST_WORD:
        return _numbered(words(text, length))
    size = (length + 1) // 2
    return _numbered(pairs(names(text, size), length - size, text.size))


def pairs(names_of_size: np.ndarray, shift: int, bound: int) -> np.ndarray:
    """Keys of substrings that are `shift` bytes longer, each made of two names that lie `shift` apart.

    Args:
        names_of_size: names of all substrings of some size, [..., M], below `bound`.
        shift: within 1..size, so that both together cover the longer substring.
        bound: above every name; its square must fit 64 bits.
    """
    return names_of_size[..., :-shift] * bound + names_of_size[..., shift:]


def distinct_share(pieces_PN: np.ndarray, length: int) -> float:
    """Distinct n-grams over all n-grams, of all pieces together."""
    found = words(pieces_PN, length)
    return np.unique(found).size / found.size


def repeated_share(pieces_PN: np.ndarray, length: int) -> float:
    """The share of n-grams that occurred before in their own piece."""
    found = words(pieces_PN, length)
    return 1 - sum(np.unique(piece).size for piece in found) / found.size


def longest_repeat(piece_N: np.ndarray) -> int:
    """Bytes of the longest substring that occurs twice; the two may overlap, so a loop repeats nearly all of itself."""

    def occurs_twice(length: int) -> bool:
        found = names(piece_N, length)
        return np.unique(found).size < found.size

    return longest(occurs_twice, 0, piece_N.size)


def longest(holds: Callable[[int], bool], known: int, limit: int) -> int:
    """The largest length in [known, limit) for which `holds`, which holds for all shorter ones too."""
    while limit - known > 1:
        middle = (known + limit) // 2
        known, limit = (middle, limit) if holds(middle) else (known, middle)
    return known


def _numbered(keys: np.ndarray) -> np.ndarray:
    """Numbers keys from 0, equal keys alike."""
    return np.unique(keys, return_inverse=True)[1].reshape(keys.shape)


SHORTEST_COPY = 2 * LONGEST_WORD

_BLOCK = 1 << 20  # Places of the corpus looked at together: some 30 MB of temporary arrays.
_FILTER_BITS = 20
_FILTER_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, which spreads every byte to the top bits.


class Copies(NamedTuple):
    """What of a text occurs in a corpus.

    Attributes:
        share: by minimal length L, the share of the text's bytes that lie in a substring of at least L bytes which
            occurs in the corpus.
        longest: bytes of the longest such substring; 0 where none has `SHORTEST_COPY` bytes.
        example: that substring.
    """

    share: dict[int, float]
    longest: int
    example: bytes


class _Shared(NamedTuple):
    """The grams of one length that a text and a corpus share."""

    length: int
    names_PW: np.ndarray  # Of all grams of the text, below `count`.
    count: int
    places_M: np.ndarray  # Where in the corpus one of those begins, increasing.
    found_M: np.ndarray  # Which one.


def find_copies(pieces_PN: np.ndarray, corpus: ByteSequence, lengths: tuple[int, ...]) -> Copies:
    """Looks for substrings of a text in a corpus.

    Args:
        pieces_PN: the text, uint8; no copy spans two pieces.
        corpus: its bytes.
        lengths: what counts as a copy, each `SHORTEST_COPY` times a power of two.
    """
    levels = [_shared_grams(pieces_PN, corpus)]
    while levels[-1].places_M.size:
        levels.append(_lengthened(levels[-1], 2 * levels[-1].length))
    *copied, _ = levels
    share = {length: 0.0 for length in lengths}
    for level in copied:
        if level.length in share:
            share[level.length] = float(_in_a_copy(level, pieces_PN.shape).mean())
    if not copied:
        return Copies(share, 0, b"")
    last = copied[-1]
    best = longest(lambda length: _lengthened(last, length).places_M.size > 0, last.length, 2 * last.length)
    place = (last if best == last.length else _lengthened(last, best)).places_M[0]
    return Copies(share, best, np.asarray(corpus[place : place + best]).tobytes())


def _shared_grams(pieces_PN: np.ndarray, corpus: ByteSequence) -> _Shared:
    """The shared grams of `SHORTEST_COPY` bytes: one pass over the corpus, block by block."""
    known, names = np.unique(words(pieces_PN, LONGEST_WORD), return_inverse=True)
    names_PW = names.reshape(len(pieces_PN), -1)
    may_be_known = np.zeros(1 << _FILTER_BITS, bool)
    may_be_known[_filter_index(known)] = True
    shared = [_lengthened(_Shared(LONGEST_WORD, names_PW, known.size, *_nowhere()), SHORTEST_COPY)]
    for start in range(0, len(corpus), _BLOCK):
        # As many bytes more than a block has places that each place has its whole gram.
        found = words(np.asarray(corpus[start : start + _BLOCK + SHORTEST_COPY - 1]), LONGEST_WORD)
        places = np.flatnonzero(may_be_known[_filter_index(found)])
        index, is_known = _look_up(known, found[places])
        here = _Shared(LONGEST_WORD, names_PW, known.size, places[is_known], index[is_known])
        here = _lengthened(here, SHORTEST_COPY)
        shared.append(here._replace(places_M=here.places_M + start))
    places_M, found_M = (np.concatenate(parts) for parts in zip(*((s.places_M, s.found_M) for s in shared)))
    return shared[0]._replace(places_M=places_M, found_M=found_M)


def _lengthened(shared: _Shared, length: int) -> _Shared:
    """The shared grams of a greater length, at most twice as great: pairs that together cover it, on both sides."""
    shift = length - shared.length
    keys_PW = pairs(shared.names_PW, shift, shared.count)
    known, names = np.unique(keys_PW, return_inverse=True)
    later, is_there = _look_up(shared.places_M, shared.places_M + shift)
    keys_M = shared.found_M[is_there] * shared.count + shared.found_M[later[is_there]]
    index, is_known = _look_up(known, keys_M)
    return _Shared(
        length, names.reshape(keys_PW.shape), known.size, shared.places_M[is_there][is_known], index[is_known]
    )


def _in_a_copy(shared: _Shared, shape: tuple[int, int]) -> np.ndarray:
    """Which bytes of the text lie in one of the shared grams, bool [P, N]."""
    is_shared = np.zeros(shared.count, bool)
    is_shared[shared.found_M] = True
    begins_PW = is_shared[shared.names_PW].astype(np.int64)
    edges = np.zeros((shape[0], shape[1] + 1), np.int64)
    edges[:, : begins_PW.shape[1]] += begins_PW
    edges[:, shared.length :] -= begins_PW
    return np.cumsum(edges, axis=1)[:, :-1] > 0


def _look_up(increasing: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds each value in an increasing array: its index, and whether it is there (else the index means nothing)."""
    index = np.searchsorted(increasing, values)
    if not increasing.size:
        return index, np.zeros(values.shape, bool)
    return index, increasing[np.minimum(index, increasing.size - 1)] == values


def _filter_index(found: np.ndarray) -> np.ndarray:
    return (found * _FILTER_FACTOR) >> np.uint64(64 - _FILTER_BITS)


def _nowhere() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


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
