"""The brake: what happens to the norm of a weight, and what does not happen to its direction."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import MatrixLayout, hyperball, orthogonal_radial_decomposition, radial_brake
from tests.optim.matrices import cosine, normal

W = normal(6, 8)
UNIT = W / jnp.linalg.norm(W)
ACROSS = orthogonal_radial_decomposition(normal(6, 8, seed=1), W).perpendicular
ACROSS = ACROSS / jnp.linalg.norm(ACROSS)


def brake(step, weight=W, tx=None, **options):
    tx = tx or radial_brake(**options)
    return tx.update({"w": step}, tx.init({"w": weight}), {"w": weight})[0]["w"]


def growth(step, weight=W, **options):
    return float(jnp.linalg.norm(weight + brake(step, weight, **options)) - jnp.linalg.norm(weight))


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
    assert float(jnp.linalg.norm(W + brake(-100 * UNIT))) == pytest.approx(0, abs=1e-5)


def test_stacks_blocks_and_vectors():
    w, step = normal(3, 4, 6), 0.1 * normal(3, 4, 6, seed=1)
    for i in range(3):
        np.testing.assert_allclose(brake(step, w)[i], brake(step[i], w[i]), atol=1e-6)
    halves = MatrixLayout(blocks=2)
    np.testing.assert_allclose(brake(step, w, layout=halves)[..., :3], brake(step[..., :3], w[..., :3]), atol=1e-6)
    vector = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(brake(vector / 5, vector), vector / 10, atol=1e-6)
    assert float(brake(jnp.float32(1.0), jnp.float32(2.0))) == pytest.approx(0.5)


def test_behind_a_learning_rate_descent_grows_where_the_gradient_points_inward():
    tx = optax.chain(optax.scale_by_learning_rate(0.1), radial_brake())
    step, _ = tx.update({"w": -UNIT}, tx.init({"w": W}), {"w": W})
    np.testing.assert_allclose(step["w"], 0.05 * UNIT, atol=1e-6)
