"""The decomposition: what is perpendicular, what is kept, and that no weight or gradient makes a NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.optim import orthogonal_radial_decomposition
from fftlm_jax.optim.radial import frobenius_component, safe_norm, second_moment_component
from tests.optim.matrices import cosine, normal, relative

STACK = (3, 8, 12)


def array(*shape, seed=0, dtype=np.float32):
    return np.array(normal(*shape, seed=seed, dtype=dtype))


G, W = array(8, 12), array(8, 12, seed=1)
_decompose = jax.jit(orthogonal_radial_decomposition, static_argnames=("granularity", "min_norm"))


def decompose(gradient, weight, **options):
    """NumPy arrays from NumPy arrays; compiled once for each shape, so most tests have one of two."""
    return jax.device_get(_decompose(gradient, weight, **options))


def test_values_of_a_small_example():
    perpendicular, parallel, stats = decompose(np.float32([[3, 4]]), np.float32([[2, 0]]))
    np.testing.assert_allclose(perpendicular, [[0, 4]], atol=1e-6)
    np.testing.assert_allclose(parallel, [[3, 0]], atol=1e-6)
    expected = {"ratio": 1.5, "cosine": 0.6, "gradient_norm": 5, "weight_norm": 2}
    expected |= {"parallel_norm": 3, "perpendicular_norm": 4}
    assert {k: float(v) for k, v in stats._asdict().items()} == pytest.approx(expected)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_perpendicular_pythagoras_and_sum(dtype):
    g, w = G.astype(jnp.dtype(dtype)), W.astype(jnp.dtype(dtype))
    perpendicular, parallel, stats = decompose(g, w)
    assert abs(cosine(perpendicular, w)) <= 1e-6
    np.testing.assert_allclose(perpendicular + parallel, g.astype(np.float32), atol=1e-6)
    squares = stats.perpendicular_norm**2 + stats.parallel_norm**2
    assert float(squares) == pytest.approx(float(stats.gradient_norm) ** 2, rel=1e-6)
    assert float(stats.cosine) == pytest.approx(cosine(g, w), abs=1e-6)


def test_idempotent():
    perpendicular, parallel, stats = decompose(G, W)
    assert abs(float(decompose(perpendicular, W)[2].ratio)) <= 1e-7
    assert float(decompose(parallel, W)[2].ratio) == pytest.approx(float(stats.ratio), rel=1e-6)


@pytest.mark.parametrize("k", (1e-3, 7.0, -2.0))
def test_scale_of_the_weight(k):
    """The parallel part depends on the direction of the weight only; rho falls as the weight grows."""
    _, parallel, stats = decompose(G, W)
    _, scaled_parallel, scaled_stats = decompose(G, np.float32(k) * W)
    np.testing.assert_allclose(scaled_parallel, parallel, atol=1e-6)
    assert float(scaled_stats.ratio) == pytest.approx(float(stats.ratio) / k, rel=1e-5)


@pytest.mark.parametrize("granularity,axis", (("out", 0), ("in", 1)))
def test_neurons(granularity, axis):
    perpendicular, parallel, stats = decompose(G, W, granularity=granularity)
    for i in range(W.shape[1 - axis]):
        assert abs(cosine(perpendicular.take(i, 1 - axis), W.take(i, 1 - axis))) <= 1e-6
    np.testing.assert_allclose(perpendicular + parallel, G, atol=1e-6)
    assert stats.ratio.shape == () and float(stats.ratio) == pytest.approx(float(decompose(G, W)[2].ratio), rel=1e-5)


def test_blocks():
    perpendicular, parallel, _ = decompose(G, W, granularity=(4, 3))
    for i in range(0, 8, 4):
        for j in range(0, 12, 3):
            block = np.s_[i : i + 4, j : j + 3]
            expected = decompose(G[block], W[block])
            np.testing.assert_allclose(perpendicular[block], expected[0], atol=1e-6)
            np.testing.assert_allclose(parallel[block], expected[1], atol=1e-6)
    whole = decompose(G, W, granularity=(8, 12))
    np.testing.assert_allclose(whole[1], decompose(G, W)[1], atol=1e-6)


@pytest.mark.parametrize("granularity", ("row", (3, 3)))
def test_granularities_that_do_not_fit(granularity):
    with pytest.raises(ValueError, match="unknown granularity 'row'|do not divide"):
        decompose(G, W, granularity=granularity)


def test_a_stack_is_its_matrices_and_a_nan_stays_in_its_own():
    g, w = array(*STACK), array(*STACK, seed=1)
    stacked = decompose(g, w)
    for i in range(3):
        jax.tree.map(lambda s, one: np.testing.assert_allclose(s[i], one, atol=1e-6), stacked, decompose(g[i], w[i]))
    g[1, 0, 0] = np.nan
    spoiled = decompose(g, w)
    assert np.isnan(spoiled[2].cosine[1]) and np.isfinite(spoiled[2].cosine[[0, 2]]).all()


@pytest.mark.parametrize("granularity", ("matrix", "out", "in", (4, 3)))
def test_zeros_give_zeros_forward_and_backward(granularity):
    zero = np.zeros_like(G)

    def total(g, w):
        parts = _decompose(g, w, granularity=granularity)
        return sum(jnp.sum(x) for x in jax.tree.leaves(parts)), parts

    parts_and_derivatives = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    for g, w in ((zero, zero), (G, zero), (zero, G)):
        (_, (perpendicular, parallel, stats)), derivatives = parts_and_derivatives(g, w)
        np.testing.assert_array_equal(parallel, 0)
        np.testing.assert_array_equal(perpendicular, g)
        assert float(stats.ratio) == float(stats.cosine) == 0
        assert all(np.isfinite(d).all() for d in derivatives)


def test_min_norm_hides_small_weights():
    small = W * (np.float32(1e-3) / np.linalg.norm(W))
    assert float(decompose(G, small, min_norm=1e-2)[2].ratio) == 0
    assert float(decompose(G, small, min_norm=1e-4)[2].ratio) != 0


@pytest.mark.parametrize("g_scale,w_scale", ((1e-30, 1), (1e30, 1), (1, 1e-30), (1, 1e30), (1e-25, 1e25)))
def test_extreme_scales(g_scale, w_scale):
    _, parallel, stats = decompose(G * np.float32(g_scale), W * np.float32(w_scale))
    _, expected, plain = decompose(G, W)
    assert relative(parallel / g_scale, expected) <= 1e-5
    assert float(stats.cosine) == pytest.approx(float(plain.cosine), rel=1e-5)


def test_complex_weights_are_real_vectors_of_twice_the_size():
    g, w = array(4, 12, dtype=np.complex64), array(4, 12, seed=1, dtype=np.complex64)
    split = lambda x: np.concatenate([x.real, x.imag])
    ours, expected = decompose(g, w), decompose(split(g), split(w))
    np.testing.assert_allclose(split(ours[0]), expected[0], atol=1e-6)
    np.testing.assert_allclose(ours[2], expected[2], rtol=1e-5)


def test_frobenius_component_forgets_the_units_of_the_gradient():
    for k in (1e-6, 1.0, 3e5):
        _, parallel, stats = decompose(np.float32(k) * G, W)
        component = jax.jit(frobenius_component)(parallel, stats.gradient_norm)
        assert relative(component, np.sqrt(8) * cosine(G, W) * W / np.linalg.norm(W)) <= 1e-6


jitted_second_moment = jax.jit(second_moment_component)


def test_second_moment_component_against_numpy():
    root, mean = np.float32(0), 0.0
    for t in range(1, 6):
        g = array(8, 12, seed=t) * np.float32(1e-25)
        _, parallel, stats = decompose(g, W)
        component, root = jitted_second_moment(parallel, stats, root, np.int32(t), 0.9)
        q = np.sum(np.asarray(g, np.float64) * np.asarray(W)) / np.linalg.norm(W)
        mean = 0.9 * mean + 0.1 * q * q
        expected = np.sqrt(8) * q / np.sqrt(mean / (1 - 0.9**t)) * np.asarray(W) / np.linalg.norm(W)
        assert relative(component, expected) <= 1e-5


def test_second_moment_component_is_zero_for_zero_gradients():
    _, parallel, stats = decompose(0 * G, W)
    component, root = jitted_second_moment(parallel, stats, np.float32(0), np.int32(1), 0.9)
    np.testing.assert_array_equal(component, 0)
    assert float(root) == 0


def test_safe_norm_is_the_norm():
    assert float(jax.jit(safe_norm)(G)[0, 0]) == pytest.approx(float(np.linalg.norm(G)), rel=1e-6)
    assert jax.eval_shape(safe_norm, np.zeros((2, 0), np.float32)).shape == (1, 1)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from(((1, 4), (8, 12), STACK)),
    exponents=st.tuples(st.integers(-20, 18), st.integers(-20, 18)),
    seed=st.integers(0, 9),
)
def test_parts_add_up_for_any_input(shape, exponents, seed):
    g, w = (array(*shape, seed=seed + 50 * i) * np.float32(10.0**exponent) for i, exponent in enumerate(exponents))
    perpendicular, parallel, stats = decompose(g, w)
    assert relative(perpendicular + parallel, g) <= 1e-6
    assert (np.abs(stats.cosine) <= 1 + 1e-6).all()
    assert all(np.isfinite(x).all() for x in (perpendicular, parallel, stats.cosine))
