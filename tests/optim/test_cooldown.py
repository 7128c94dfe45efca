"""Stages, cooldown and momentum at the steps whose values the source's logs show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fftlm_jax.optim import (
    STAGE_BATCH_TOKENS,
    momentum_schedule,
    muon_spectral,
    stage_cooldown_schedule,
    stage_schedule,
)


@pytest.mark.parametrize(
    "case,step,expected",
    (
        ("start", 0, 1.0),
        ("second stage", 520, 1.52),
        ("first step of the cooldown", 702, 1.518),
        ("end of the second stage", 1039, 0.961),
        ("third stage jumps up", 1040, 1.087),
        ("middle of the third stage", 1300, 0.593),
        ("last scheduled step", 1559, 0.102),
        ("extension", 1560, 0.1),
        ("last step", 1599, 0.1),
        ("end of the first stage", 519, 1.0),
        ("before the cooldown", 701, 1.52),
    ),
)
def test_multipliers(case, step, expected):
    assert float(stage_cooldown_schedule()(step)) == pytest.approx(expected, abs=5e-4), case


def test_exponential_cooldown():
    schedule = stage_cooldown_schedule(1000, (1.0,), cooldown_fraction=0.5, floor=0.01, shape="exponential")
    np.testing.assert_allclose([schedule(s) for s in (0, 500, 750, 1000, 2000)], [1, 1, 0.1, 0.01, 0.01], rtol=1e-5)
    with pytest.raises(ValueError, match="unknown cooldown shape 'cosine'"):
        stage_cooldown_schedule(shape="cosine")


def test_batch_stages():
    schedule = stage_schedule(STAGE_BATCH_TOKENS, 1560)
    steps = (0, 519, 520, 1039, 1040, 1559, 1599)
    assert [int(schedule(s)) for s in steps] == [131072] * 2 + [262144] * 2 + [393216] * 3


@pytest.mark.parametrize(
    "step,expected", ((0, 0.85), (150, 0.90), (300, 0.95), (1550, 0.95), (1575, 0.90), (1600, 0.85), (2000, 0.85))
)
def test_momentum(step, expected):
    assert float(momentum_schedule()(step)) == pytest.approx(expected, abs=1e-6)


def test_extremes_are_finite():
    steps = jnp.arange(6)
    for schedule in (
        stage_cooldown_schedule(3, (1.0,), cooldown_fraction=0.0),
        stage_cooldown_schedule(3, cooldown_fraction=1.0),
        momentum_schedule(3, warmup=0, cooldown=0),
    ):
        assert bool(jnp.isfinite(jax.vmap(schedule)(steps)).all())


def test_they_drive_the_optimizer():
    multiplier = stage_cooldown_schedule(12)
    tx = muon_spectral(lambda count: 0.1 * multiplier(count), beta=momentum_schedule(12, warmup=2, cooldown=2))
    params = {"w": jnp.eye(3)}
    state, sizes = tx.init(params), []
    for _ in range(13):
        updates, state = jax.jit(tx.update)(params, state, params)
        sizes.append(-float(updates["w"][0, 0]))
    np.testing.assert_allclose(np.array(sizes) / sizes[0], [float(multiplier(s)) for s in range(13)], rtol=1e-4)
