"""The brake: what happens to the norm of a weight, and what does not happen to its direction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import MatrixLayout, hyperball, radial_brake
from tests.optim.matrices import cosine, normal

# Nearly all matrices have this shape, since an operation is compiled once for each.
SHAPE = (6, 8)
W = np.asarray(normal(*SHAPE))
UNIT = W / np.linalg.norm(W)
ACROSS = np.asarray(normal(*SHAPE, seed=1))
ACROSS = ACROSS - np.sum(ACROSS * UNIT) * UNIT
ACROSS = ACROSS / np.linalg.norm(ACROSS)


def brake(step, weight=W, tx=None, **options):
    return np.asarray(_brake(tx or radial_brake(**options), jnp.asarray(step, jnp.float32), jnp.asarray(weight)))


def _brake(tx, step, weight):
    return tx.update({"w": step}, tx.init({"w": weight}), {"w": weight})[0]["w"]


def growth(step, weight=W, **options):
    return float(np.linalg.norm(weight + brake(step, weight, **options)) - np.linalg.norm(weight))


@pytest.mark.parametrize(
    "case,along,options,expected",
    (
        ("outward is halved", 0.1, {}, 0.05),
        ("inward is kept", -0.1, {}, -0.1),
        ("another factor", 0.1, {"outward": 0.2}, 0.02),
        ("inward braked", -0.1, {"inward": 0.3}, -0.03),
        ("no brake", 0.1, {"outward": 1.0}, 0.1),
    ),
)
def test_change_of_the_norm(case, along, options, expected):
    for across in (0.0, 0.5):
        assert growth(along * UNIT + across * ACROSS, **options) == pytest.approx(expected, abs=2e-6), case


def test_without_correction_the_part_across_lengthens():
    step = 0.1 * UNIT + 2.0 * ACROSS
    assert growth(step, correct_radius=False) > growth(step) + 0.1
    np.testing.assert_allclose(brake(step, correct_radius=False), 0.05 * UNIT + 2.0 * ACROSS, atol=1e-6)


def test_the_direction_of_a_tangent_step_is_kept():
    step = 0.5 * ACROSS
    assert cosine(W + brake(step), W + step) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("along", (-0.5, 0.0, 0.5))
def test_hyperball_keeps_the_norm(along):
    assert growth(along * UNIT + ACROSS, tx=hyperball()) == pytest.approx(0, abs=2e-6)


def test_zero_weights_move_freely_and_zero_steps_not_at_all():
    for tx in (radial_brake(), hyperball()):
        np.testing.assert_array_equal(brake(ACROSS, 0 * W, tx=tx), ACROSS)
        np.testing.assert_allclose(brake(0 * W, W, tx=tx), 0, atol=1e-6)
    np.testing.assert_array_equal(brake(0 * W, 0 * W), 0)


def test_a_step_beyond_the_origin_stops_there():
    assert float(np.linalg.norm(W + brake(-100 * UNIT))) == pytest.approx(0, abs=1e-5)


def test_stacks_blocks_and_vectors():
    brake = lambda step, weight, **options: jax.jit(_brake, static_argnums=0)(radial_brake(**options), step, weight)
    w, step = np.asarray(normal(3, *SHAPE)), np.float32(0.1) * np.asarray(normal(3, *SHAPE, seed=1))
    stacked = brake(step, w)
    for i in range(3):
        np.testing.assert_allclose(stacked[i], brake(step[i], w[i]), atol=1e-6)
    halves = brake(step[0], w[0], layout=MatrixLayout(blocks=2))
    np.testing.assert_allclose(halves[:, :4], brake(step[0, :, :4], w[0, :, :4]), atol=1e-6)
    vector = np.float32([3, 4])
    np.testing.assert_allclose(brake(vector / 5, vector), vector / 10, atol=1e-6)
    assert float(brake(np.float32(1), np.float32(2))) == pytest.approx(0.5)


def test_behind_a_learning_rate_descent_grows_where_the_gradient_points_inward():
    tx = optax.chain(optax.scale_by_learning_rate(0.1), radial_brake())
    np.testing.assert_allclose(brake(-UNIT, tx=tx), 0.05 * UNIT, atol=1e-6)
