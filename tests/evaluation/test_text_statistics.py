"""Statistics of text against brute force, on small alphabets, where everything repeats and much is copied."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.evaluation import generated_text
from fftlm_jax.evaluation.generated_text import (
    distinct_share,
    find_copies,
    longest_repeat,
    names,
    repeated_share,
    words,
)

LETTERS = st.binary(min_size=1, max_size=60).map(lambda b: bytes(x % 3 for x in b))
BYTES = st.binary(min_size=1, max_size=40)


def array(text):
    return np.frombuffer(text, np.uint8)


def grams(text, length):
    return [text[i : i + length] for i in range(len(text) - length + 1)]


@given(st.one_of(LETTERS, BYTES), st.integers(1, 40))
def test_names_are_equal_exactly_where_substrings_are(text, length):
    found, expected = names(array(text), length).tolist(), grams(text, length)
    assert len(found) == len(expected)
    assert len(set(found)) == len(set(expected)) == len(set(zip(found, expected)))


@given(BYTES, st.integers(1, 8))
def test_words_are_the_bytes_themselves(text, length):
    assert [int(w).to_bytes(8, "little")[:length] for w in words(array(text), length)] == grams(text, length)


@given(st.lists(st.binary(min_size=12, max_size=12).map(lambda b: bytes(x % 3 for x in b)), min_size=1, max_size=4))
def test_variety_and_repetition(pieces):
    pieces_PN = np.stack([array(piece) for piece in pieces])
    for n in (1, 3, 8):
        found = [grams(piece, n) for piece in pieces]
        pooled = [gram for piece in found for gram in piece]
        distinct = len(set(pooled)) / len(pooled)
        seen_before = [gram in piece[:i] for piece in found for i, gram in enumerate(piece)]
        assert distinct_share(pieces_PN, n) == pytest.approx(distinct)
        assert repeated_share(pieces_PN, n) == pytest.approx(np.mean(seen_before))


@given(st.one_of(LETTERS, BYTES))
def test_the_longest_repeat(text):
    expected = max(n for n in range(len(text)) if n == 0 or len(set(grams(text, n))) < len(text) - n + 1)
    assert longest_repeat(array(text)) == expected


def test_a_loop_repeats_nearly_all_of_itself():
    assert longest_repeat(array(b"abc" * 50)) == 147
    assert longest_repeat(array(bytes(range(200)))) == 0


def brute_force(pieces, corpus, length):
    """Share of bytes in a copy of at least `length` bytes, and the longest copy of at least 16."""
    marks, longest = [], 0
    for piece in pieces:
        is_copied = [False] * len(piece)
        for i in range(len(piece)):
            for j in range(i + 16, len(piece) + 1):
                if piece[i:j] in corpus:
                    longest = max(longest, j - i)
                    if j - i >= length:
                        is_copied[i:j] = [True] * (j - i)
        marks += is_copied
    return np.mean(marks), longest


@st.composite
def texts_with_copies(draw):
    """Pieces of equal length and a corpus, over three letters, with parts of the corpus planted in the pieces."""
    corpus = draw(st.binary(min_size=1, max_size=200).map(lambda b: bytes(x % 3 for x in b)))
    corpus += np.random.default_rng(len(corpus)).integers(0, 3, 100).astype(np.uint8).tobytes()
    pieces = draw(st.lists(st.binary(min_size=70, max_size=70).map(lambda b: bytes(x % 3 for x in b)), max_size=3))
    planted = []
    for piece in [*pieces, b"\0" * 70]:
        size, at = draw(st.integers(0, 70)), draw(st.integers(0, 60))
        start = draw(st.integers(0, len(corpus) - size))
        part = corpus[start : start + size]
        planted.append((piece[:at] + part + piece[at:])[:70])
    return planted, corpus


@settings(max_examples=60, deadline=None)
@given(texts_with_copies(), st.sampled_from((16, 17, 40, 1 << 20)))
def test_copies_are_those_of_a_search_of_every_substring(case, block):
    """Also where copies lie across the borders of blocks."""
    pieces, corpus = case
    before = generated_text._BLOCK
    generated_text._BLOCK = block
    try:
        found = find_copies(np.stack([array(p) for p in pieces]), array(corpus), (16, 32, 64))
    finally:
        generated_text._BLOCK = before
    for length in (16, 32, 64):
        share, longest = brute_force(pieces, corpus, length)
        assert found.share[length] == pytest.approx(share)
    assert found.longest == longest == len(found.example)
    assert found.example in corpus and any(found.example in piece for piece in pieces)


def test_a_planted_copy_is_found_and_does_not_span_pieces():
    rng = np.random.default_rng(0)
    corpus = rng.integers(0, 256, 300_000).astype(np.uint8)
    pieces = rng.integers(0, 256, (4, 500)).astype(np.uint8)
    assert find_copies(pieces, corpus, (16, 32)) == ({16: 0.0, 32: 0.0}, 0, b"")
    pieces[2, 100:151] = corpus[70_000:70_051]
    pieces[0, -20:], pieces[1, :20] = corpus[5000:5020], corpus[5020:5040]
    found = find_copies(pieces, corpus, (16, 32, 64))
    assert found.share == {16: (51 + 40) / 2000, 32: 51 / 2000, 64: 0.0}
    assert found.longest == 51 and found.example == corpus[70_000:70_051].tobytes()


def test_a_filter_that_lets_everything_through_changes_nothing(monkeypatch):
    """The filter only saves comparisons: no copy comes from it."""
    rng = np.random.default_rng(1)
    corpus, pieces = rng.integers(0, 3, 4000).astype(np.uint8), rng.integers(0, 3, (2, 300)).astype(np.uint8)
    pieces[0, 40:90] = corpus[1000:1050]
    filtered = find_copies(pieces, corpus, (16, 32))
    monkeypatch.setattr(generated_text, "_filter_index", lambda found: np.zeros(found.shape, np.int64))
    assert find_copies(pieces, corpus, (16, 32)) == filtered
    assert filtered.longest >= 50
