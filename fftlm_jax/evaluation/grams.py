"""Substrings of equal length as integers, and what they say about a text: variety and repetition. NumPy only.

An n-gram is a substring of n bytes. Nothing is hashed, so nothing can collide: up to 8 bytes are an integer of 64 bits,
and a longer substring is named by the pair of its first and last halves (Karp, Miller and Rosenberg, STOC 1972).
Shapes: P pieces of text, N bytes of each. A gram never spans two pieces.
"""

from collections.abc import Callable

import numpy as np

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
