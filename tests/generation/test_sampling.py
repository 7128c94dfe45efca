"""Sampling rules: tables, and what must hold for any logits, any past and all rules together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.generation.sampling import (
    NOTHING,
    SamplingConfig,
    exclude,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    limit_runs,
    log_probabilities,
    penalise_repetition,
    push,
    remember,
)

LOGITS = jnp.log(jnp.asarray([0.5, 0.25, 0.15, 0.1]))


def kept(logits) -> list[int]:
    return np.flatnonzero(np.isfinite(logits)).tolist()


@pytest.mark.parametrize(
    "k,expected", ((0, [0, 1, 2, 3]), (1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3]))
)
def test_top_k(k, expected):
    assert kept(keep_top_k(LOGITS, k)) == expected


@pytest.mark.parametrize(
    "p,expected", ((1.0, [0, 1, 2, 3]), (0.9, [0, 1, 2]), (0.76, [0, 1, 2]), (0.74, [0, 1]), (0.4, [0]), (1e-9, [0]))
)
def test_top_p_keeps_the_smallest_sufficient_set(p, expected):
    assert kept(keep_top_p(LOGITS, p)) == expected
    order = jnp.asarray([2, 0, 3, 1])
    assert sorted(np.asarray(order)[kept(keep_top_p(LOGITS[order], p))]) == expected


@pytest.mark.parametrize(
    "p,expected", ((0.0, [0, 1, 2, 3]), (0.19, [0, 1, 2, 3]), (0.25, [0, 1, 2]), (0.4, [0, 1]), (1.0, [0]))
)
def test_min_p_is_relative_to_the_likeliest(p, expected):
    assert kept(keep_min_p(LOGITS, p)) == expected
    assert kept(keep_min_p(LOGITS - 7.0, p)) == expected


def test_repetition_penalty_makes_seen_bytes_less_likely_whatever_their_sign():
    logits = jnp.asarray([2.0, -2.0, 2.0])
    np.testing.assert_allclose(penalise_repetition(logits, jnp.asarray([0, 1, NOTHING]), 2.0), [1.0, -4.0, 2.0])
    np.testing.assert_array_equal(penalise_repetition(logits, jnp.asarray([0, 1]), 1.0), logits)
    banned = penalise_repetition(jnp.asarray([-jnp.inf, 1.0]), jnp.asarray([0]), 2.0)
    np.testing.assert_array_equal(banned, [-jnp.inf, 1.0])


@pytest.mark.parametrize(
    "past,longest,excluded",
    (
        ([1, 2, 2], 2, [2]),
        ([2, 2, 2], 2, [2]),
        ([2, 1, 2], 2, []),
        ([2, 2, 2], 3, [2]),
        ([NOTHING, 2, 2], 3, []),
        ([NOTHING] * 3, 3, []),
        ([1, 2, 3], 1, [3]),
        ([2, 2, 2], 0, []),
    ),
)
def test_runs_end_at_the_limit(past, longest, excluded):
    found = kept(limit_runs(LOGITS, jnp.asarray(past), longest))
    assert found == [v for v in range(4) if v not in excluded]


def test_allowed_bytes():
    ascii_only = SamplingConfig(ascii_only=True, banned=b"a\n").allowed
    assert set(np.flatnonzero(ascii_only)) == {9, *range(32, 127)} - {ord("a")}
    assert SamplingConfig(banned=b"\x00\xff").allowed.sum() == 254
    assert kept(exclude(LOGITS, np.asarray([True, False, True, False]))) == [0, 2]


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=12), st.integers(0, 8))
def test_what_is_remembered_is_the_end_of_the_text(text, size):
    found = remember(text, size).tolist()
    assert found == [NOTHING] * max(0, size - len(text)) + list(text[max(0, len(text) - size) :])
    if len(text) and size:
        np.testing.assert_array_equal(push(remember(text[:-1], size), text[-1]), found)


def test_temperature_zero_is_certain_and_others_follow_the_distribution():
    nothing = jnp.zeros(0, jnp.int32)
    greedy = log_probabilities(LOGITS, nothing, SamplingConfig(temperature=0.0))
    np.testing.assert_array_equal(greedy, [0.0, -jnp.inf, -jnp.inf, -jnp.inf])
    np.testing.assert_allclose(np.exp(log_probabilities(LOGITS, nothing, SamplingConfig())), np.exp(LOGITS), rtol=1e-5)
    squared = np.square([0.5, 0.25, 0.15, 0.1])
    sharp = np.exp(log_probabilities(LOGITS, nothing, SamplingConfig(temperature=0.5)))
    np.testing.assert_allclose(sharp, squared / squared.sum(), rtol=1e-5)


RULES = (
    SamplingConfig(),
    SamplingConfig(temperature=0.0, longest_run=2, banned=b"abc"),
    SamplingConfig(0.5, top_k=3, top_p=0.8, min_p=0.1, repetition_penalty=1.7, repetition_window=5, longest_run=3),
    SamplingConfig(3.0, repetition_penalty=0.5, repetition_window=2, longest_run=4, ascii_only=True),
    SamplingConfig(top_k=1, longest_run=1, ascii_only=True, banned=b"0123456789"),
)
_jitted = jax.jit(log_probabilities, static_argnums=2)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30), st.sampled_from(RULES), st.binary(max_size=6))
def test_all_rules_together_leave_a_distribution_over_allowed_bytes(seed, spread, rules, past):
    logits = spread * np.random.default_rng(seed).normal(size=256).astype(np.float32)
    probability = np.exp(np.asarray(_jitted(logits, remember(past, rules.memory), rules)))
    assert probability.sum() == pytest.approx(1, abs=1e-4)
    assert (probability[~rules.allowed] == 0).all()
    if rules.top_k:
        assert (probability > 0).sum() <= rules.top_k
    run = rules.longest_run
    if run and len(past) >= run and len(set(past[-run:])) == 1:
        assert probability[past[-1]] == 0
    unruly = dataclasses.replace(rules, longest_run=0, repetition_penalty=1.0, banned=b"", ascii_only=False)
    if unruly == rules:
        assert np.argmax(probability) == np.argmax(logits)


def test_the_penalty_looks_at_its_window_alone():
    """Also where more is remembered, for the limit on runs."""
    rules = SamplingConfig(repetition_penalty=2.0, repetition_window=2, longest_run=4)
    found = log_probabilities(LOGITS, jnp.asarray([0, 1, 2, 3]), rules)
    expected = jax.nn.log_softmax(penalise_repetition(LOGITS, jnp.asarray([2, 3]), 2.0))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
