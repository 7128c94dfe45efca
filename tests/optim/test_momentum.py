"""Momentum in its three styles against loops in NumPy and against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import scale_by_nesterov_ema
from tests.optim.matrices import normal, relative


def run(tx, gradients):
    state, out, update = tx.init({"w": gradients[0]}), [], jax.jit(tx.update)
    for g in gradients:
        updates, state = update({"w": g}, state)
        out.append(np.asarray(updates["w"]))
    return out, state


GRADIENTS = [np.asarray(normal(3, 4, seed=seed)) for seed in range(50)]


@pytest.mark.parametrize("nesterov", (True, False))
@pytest.mark.parametrize("style,weight", (("keller", 0.05), ("heavyball", 1.0)))
def test_fifty_steps_against_numpy(style, weight, nesterov):
    out, _ = run(scale_by_nesterov_ema(0.95, style=style, nesterov=nesterov), GRADIENTS)
    m = np.zeros((3, 4))
    for g, ours in zip(GRADIENTS, out):
        g = np.asarray(g, np.float64)
        m = 0.95 * m + weight * g
        np.testing.assert_allclose(ours, weight * g + 0.95 * m if nesterov else m, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nesterov", (True, False))
def test_optax_style_is_that_of_optax(nesterov):
    """Adam with b2 = 0 and a huge eps is its bias-corrected momentum, divided by eps."""
    theirs, _ = run(optax.scale_by_adam(b1=0.9, b2=0.0, eps=1e8, nesterov=nesterov), GRADIENTS[:6])
    ours, _ = run(scale_by_nesterov_ema(0.9, style="optax", nesterov=nesterov), GRADIENTS[:6])
    for a, b in zip(ours, theirs):
        assert relative(a, np.asarray(b) * 1e8) < 1e-6


def test_styles_differ_in_the_first_steps_only():
    keller, _ = run(scale_by_nesterov_ema(0.9), GRADIENTS)
    corrected, _ = run(scale_by_nesterov_ema(0.9, style="optax"), GRADIENTS)
    distance = [relative(a / np.linalg.norm(a), b / np.linalg.norm(b)) for a, b in zip(keller, corrected)]
    assert distance[1] > 0.05 and distance[-1] < 0.01


def test_beta_may_be_a_schedule():
    tx = scale_by_nesterov_ema(lambda count: jnp.where(count < 1, 0.0, 0.5))
    (first, second), state = run(tx, GRADIENTS[:2])
    np.testing.assert_array_equal(first, GRADIENTS[0])
    np.testing.assert_allclose(second, 0.25 * GRADIENTS[0] + 0.75 * GRADIENTS[1], rtol=1e-5)
    assert int(state.count) == 2


def test_dtypes_of_state_and_updates():
    g = [x.astype(jnp.bfloat16) for x in GRADIENTS[:3]]
    for mu_dtype, expected in ((None, jnp.bfloat16), (jnp.float32, jnp.float32)):
        out, state = run(scale_by_nesterov_ema(mu_dtype=mu_dtype), g)
        assert out[0].dtype == jnp.bfloat16 and state.mu["w"].dtype == expected


def test_complex_gradients():
    g = np.asarray(normal(2, 3, dtype=np.complex64))
    (out,), _ = run(scale_by_nesterov_ema(0.5), [g])
    np.testing.assert_allclose(out, 0.75 * g, rtol=1e-6)


def test_an_unknown_style_is_an_error():
    with pytest.raises(ValueError, match="unknown momentum style 'adam'"):
        scale_by_nesterov_ema(style="adam")


def test_under_jit_and_scan():
    tx = scale_by_nesterov_ema(optax.linear_schedule(0.85, 0.95, 10))
    one_by_one, _ = run(tx, GRADIENTS[:5])
    _, scanned = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(GRADIENTS[0]), np.stack(GRADIENTS[:5]))
    np.testing.assert_allclose(scanned, np.stack(one_by_one), atol=1e-6)
    state = tx.init(GRADIENTS[0])
    for g, expected in zip(GRADIENTS, one_by_one):
        eager, state = tx.update(jnp.asarray(g), state)
        np.testing.assert_allclose(eager, expected, atol=1e-6)
