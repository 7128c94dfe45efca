"""How much of a text is copied verbatim from a corpus: exact, and in blocks, so that the corpus may be large.

The text is short, the corpus long. Every substring of 8 bytes of the corpus is compared, as one integer, with those of
the text. Of what remains, pairs that lie 8, 16, ... apart make substrings of 16, 32, ... bytes (see `grams`), and few
places survive each doubling. The only hash is a filter in front of the comparison, so no collision passes for a copy.
Shapes: P pieces of text, N bytes of each, W grams of a piece, M places of the corpus.
"""

from typing import NamedTuple

import numpy as np

from fftlm_jax.data import ByteSequence
from fftlm_jax.evaluation.grams import LONGEST_WORD, longest, pairs, words

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
    """Where each value stands in an increasing array, and whether it does (where not, the index means nothing)."""
    index = np.searchsorted(increasing, values)
    if not increasing.size:
        return index, np.zeros(values.shape, bool)
    return index, increasing[np.minimum(index, increasing.size - 1)] == values


def _filter_index(found: np.ndarray) -> np.ndarray:
    return (found * _FILTER_FACTOR) >> np.uint64(64 - _FILTER_BITS)


def _nowhere() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
