"""The multiplier of alpha: one before there is a reference, then now over reference, finite and bounded."""

import jax.numpy as jnp
import numpy as np
import pytest

from fftlm_jax.optim import AdaptiveAlpha, orthogonal_radial_decomposition
from fftlm_jax.optim.radial import adapt_alpha, init_adaptive_alpha
from tests.optim.matrices import normal

W = normal(4, 6)


def run(settings, cosines, weight=W):
    """Multipliers for gradients with these cosines to the weight."""
    across = normal(4, 6, seed=1)
    across = across - jnp.sum(across * W) / jnp.sum(W * W) * W
    unit, across = W / jnp.linalg.norm(W), across / jnp.linalg.norm(across)
    state, multipliers = init_adaptive_alpha(()), []
    for c in cosines:
        stats = orthogonal_radial_decomposition(c * unit + np.sqrt(1 - c * c) * across, weight).stats
        multiplier, state = adapt_alpha(settings, stats, state)
        multipliers.append(float(multiplier))
    return multipliers, state


def test_against_numpy():
    settings = AdaptiveAlpha(decay=0.8, start=2, steps=3)
    cosines = [0.9, -0.1, 0.2, -0.3, 0.4, 0.15, 0.05, -0.6]
    multipliers, _ = run(settings, cosines)
    assert multipliers[:5] == [1.0] * 5
    mean = 0.0
    for t, c in enumerate(cosines, start=1):
        mean = 0.8 * mean + 0.2 * abs(c)
        if t > 5:
            assert multipliers[t - 1] == pytest.approx(mean / (1 - 0.8**t) / 0.3, rel=1e-4)


def test_a_constant_alignment_keeps_alpha():
    np.testing.assert_allclose(run(AdaptiveAlpha(steps=2), [0.3] * 6)[0], 1, rtol=1e-5)


def test_bounded():
    multipliers, _ = run(AdaptiveAlpha(decay=0.0, steps=1, max_ratio=1.5), [0.1, 0.9, 0.0, 0.12])
    np.testing.assert_allclose(multipliers, [1, 1.5, 0, 1.2], atol=1e-5)


def test_steps_without_a_weight_do_not_count():
    settings = AdaptiveAlpha(decay=0.0, steps=2)
    state = init_adaptive_alpha(())
    for weight, seen in ((0 * W, 0), (0 * W, 0), (W, 1)):
        stats = orthogonal_radial_decomposition(normal(4, 6, seed=2), weight).stats
        multiplier, state = adapt_alpha(settings, stats, state)
        assert float(multiplier) == 1 and int(state.seen) == seen and np.isfinite(state.reference)


def test_a_reference_of_zero_keeps_alpha():
    stats, state = orthogonal_radial_decomposition(0 * W, W).stats, init_adaptive_alpha(())
    for _ in range(3):
        multiplier, state = adapt_alpha(AdaptiveAlpha(steps=1), stats, state)
        assert float(multiplier) == 1.0


def test_the_ratio_depends_on_the_length_of_the_weight_and_the_cosine_does_not():
    for statistic, expected in (("cosine", 1.0), ("ratio", 0.5)):
        settings, state = AdaptiveAlpha(statistic, decay=0.0, steps=1), init_adaptive_alpha(())
        for weight in (W, 2 * W):
            stats = orthogonal_radial_decomposition(normal(4, 6, seed=2), weight).stats
            multiplier, state = adapt_alpha(settings, stats, state)
        assert float(multiplier) == pytest.approx(expected, rel=1e-5)


def test_an_unknown_statistic_is_an_error():
    with pytest.raises(ValueError, match="unknown statistic 'rho'"):
        AdaptiveAlpha("rho")
