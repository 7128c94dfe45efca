"""Rates, their errors and pass@k against values by hand and by simulation."""

import itertools

import numpy as np
import pytest

from fftlm_jax.raft.measure import clustered_rate, distinct_3grams, longest_repeat, pass_at_k, pass_curve, unique_valid


def test_pass_at_k_of_the_specification():
    found = [pass_at_k(8, 3, k) for k in (1, 2, 4, 8)]
    assert found == pytest.approx([0.375, 0.6429, 0.9286, 1.0], abs=5e-5)


@pytest.mark.parametrize("right", range(7))
def test_pass_at_k_counts_subsets(right):
    sample = [True] * right + [False] * (6 - right)
    curve = [pass_at_k(6, right, k) for k in range(1, 7)]
    for k, value in enumerate(curve, start=1):
        subsets = list(itertools.combinations(sample, k))
        assert value == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert curve == sorted(curve) and curve[0] == pytest.approx(right / 6)


@pytest.mark.parametrize("arguments", ((4, 1, 5), (4, 5, 1), (4, 1, 0), (4, -1, 1)))
def test_pass_at_k_refuses_what_is_not_defined(arguments):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(*arguments)


def test_the_curve_starts_at_the_rate():
    right = np.random.default_rng(0).random((50, 6)) < 0.3
    curve = pass_curve(right)
    assert list(curve) == ["1", "2", "4", "6"]
    assert curve["1"] == pytest.approx(right.mean())


def test_the_error_takes_prompts_as_clusters():
    """Samples of one prompt that all agree are worth one; the interval must hold the truth as often as it says."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(300):
        by_prompt = rng.random(60) < 0.4
        rate, se = clustered_rate(np.repeat(by_prompt[:, None], 8, axis=1))
        inside += abs(rate - 0.4) < 1.96 * se
    assert 0.90 < inside / 300 < 0.99
    assert clustered_rate(np.ones((1, 4), bool)) == (1.0, 0.0)


def test_variety():
    assert unique_valid([[b"a", b"a", b"b"], [b"c", b"d", b"d"]], np.array([[1, 1, 1], [0, 1, 1]], bool)) == 3 / 5
    assert unique_valid([[b"a"]], np.array([[False]])) == 1.0
    assert distinct_3grams([b"abab", b"abc"]) == 1.0 and distinct_3grams([b"aaaaa"]) == 1 / 3
    assert distinct_3grams([b"a"]) == 1.0
    assert longest_repeat([b"aab", b"abcd", b""]) == pytest.approx((2 / 3 + 1 / 4) / 3)
