"""Polar factors: what every method keeps exactly, how near 1 each brings the singular values, and the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optax.contrib import _muon as oracle

from fftlm_jax.optim import polar
from tests.optim.matrices import decaying, normal, orthogonal, relative, singular_values, with_spectrum

# Repeated, this quintic converges to 1 exactly, unlike the fast ones: a polar factor to compare with.
CONVERGENT = ((1.875, -1.25, 0.375),) * 30
ITERATIONS = ("ns5", "polar_express", "gram", "dion")
# Of nearly all tests: an operation is compiled once for each shape.
SQUARE, WIDE, TALL, STACK = (16, 16), (16, 40), (40, 16), (3, 16, 40)
BANDS = (
    # method, smallest singular value over the norm, band in float32, band in bfloat16.
    ("ns5", 0.003, (0.68, 1.203), (0.65, 1.22)),
    ("ns5", 0.01, (0.68, 1.135), (0.65, 1.17)),
    ("polar_express", 0.001, (0.858, 1.142), (0.80, 1.16)),
    # A Gram matrix in bfloat16 squares the condition number of what it rounds: its band is wider.
    ("gram", 0.001, (0.858, 1.142), (0.70, 1.30)),
    ("dion", 0.01, (0.977, 1.033), (0.96, 1.06)),
)


@pytest.mark.parametrize("shape", (SQUARE, WIDE, TALL))
@pytest.mark.parametrize("method,smallest,band,band_bf16", BANDS)
def test_singular_values_are_in_the_band(method, smallest, band, band_bf16, shape):
    x = decaying(*shape, smallest * 1.05)
    for dtype, (low, high) in ((jnp.float32, band), (jnp.bfloat16, band_bf16)):
        values = singular_values(polar(x, method, dtype=dtype))
        assert low <= values.min() and values.max() <= high, (dtype, values.min(), values.max())


@pytest.mark.parametrize("method,bound", (("ns5", 0.08), ("polar_express", 0.13), ("gram", 0.13), ("dion", 0.05)))
def test_bfloat16_products_come_near_float32_ones(method, bound):
    x = normal(*WIDE)
    assert 0 < relative(polar(x, method, dtype=jnp.bfloat16), polar(x, method, dtype=jnp.float32)) <= bound


@pytest.mark.parametrize("shape", (SQUARE, WIDE, TALL, STACK))
def test_convergent_iterations_and_svd_agree(shape):
    x = normal(*shape)
    exact = polar(x, "svd")
    assert relative(polar(x, CONVERGENT), exact) <= 2e-5
    assert relative(polar(x, "polar_express", steps=8), exact) <= 2e-5
    assert relative(polar(x, "gram", steps=8), exact) <= 2e-5


def test_svd_is_the_polar_factor_and_idempotent():
    x = normal(*WIDE)
    u, _, vh = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    factor = polar(x, "svd")
    assert relative(factor, u @ vh) <= 1e-6
    assert relative(polar(factor, "svd"), factor) <= 1e-6


@pytest.mark.parametrize("method", ITERATIONS)
def test_gram_and_transposes_and_rotations(method):
    x = np.asarray(normal(*WIDE))
    q, r = orthogonal(16, 5), orthogonal(40, 6)
    factor = np.asarray(polar(x, method))
    assert relative(polar(x.T, method), factor.T) <= 2e-6
    assert relative(polar(q @ x @ r, method), q @ factor @ r) <= 5e-6
    np.testing.assert_array_equal(polar(-x, method), -factor)


def test_gram_equals_polar_express():
    for steps in (5, 6, 8):
        x = decaying(*WIDE, 0.002)
        assert relative(polar(x, "gram", steps=steps), polar(x, "polar_express", steps=steps)) <= 2e-5


@pytest.mark.parametrize("preconditioning", ("frobenius", "aol", "schatten"))
@pytest.mark.parametrize("method", (*ITERATIONS, "svd"))
def test_powers_of_two_change_no_bit(method, preconditioning):
    x = np.asarray(normal(*WIDE))
    for power in (-90, -3, 60):
        scaled = polar(x * np.float32(2.0**power), method, preconditioning=preconditioning)
        np.testing.assert_array_equal(scaled, polar(x, method, preconditioning=preconditioning))


@pytest.mark.parametrize("preconditioning", ("frobenius", "aol", "schatten"))
@pytest.mark.parametrize("scale", (1e-30, 1e30))
def test_extreme_scales(scale, preconditioning):
    x = np.asarray(normal(*WIDE))
    scaled = polar(x * np.float32(scale), preconditioning=preconditioning)
    assert relative(scaled, polar(x, preconditioning=preconditioning)) <= 1e-5


def test_large_float16_entries():
    x = (np.asarray(normal(*WIDE)) * 1.5e4).astype(np.float16)
    factor = polar(x)
    assert factor.dtype == jnp.float16 and 4e4 < float(np.abs(x).max()) < 6.6e4
    assert relative(factor, polar(x.astype(np.float32))) <= 1e-3


@pytest.mark.parametrize(
    "name,preconditioning,shape",
    (
        ("ns5", "frobenius", SQUARE),
        ("ns5", "frobenius", TALL),
        ("ns5", "aol", WIDE),
        ("ns5", "schatten", TALL),
        ("dion", "frobenius", WIDE),
        ("dion", "aol", TALL),
    ),
)
def test_equal_to_optax(name, preconditioning, shape):
    x = normal(*shape)
    coefficients = jnp.asarray({"ns5": (3.4445, -4.7750, 2.0315), "dion": oracle._DION_NS_COEFFS}[name])
    theirs = jax.jit(oracle.orthogonalize_via_newton_schulz, static_argnums=(2, 3))(x, coefficients, 5, preconditioning)
    assert relative(polar(x, name, preconditioning=preconditioning), theirs) <= 1e-5


def numpy_speed_run(x):
    """The five iterations of the modded-nanogpt record, in float64."""
    from tests.optim.test_polar_express import SPEED_RUN

    x = np.asarray(x, np.float64)
    x = x / (np.linalg.norm(x) * 1.02 + 1e-6)
    for a, b, c in SPEED_RUN:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_equal_to_the_speed_run():
    x = normal(*WIDE)
    assert relative(polar(x, "polar_express", dtype=jnp.float32), numpy_speed_run(x)) <= 1e-5


@pytest.mark.parametrize("preconditioning", ("aol", "schatten"))
def test_preconditioning_saves_steps(preconditioning):
    x = with_spectrum(*SQUARE, np.linspace(1, 0.02, 16))
    plain, better = (
        singular_values(polar(x, "ns5", steps=3, preconditioning=p)) for p in ("frobenius", preconditioning)
    )
    assert better.min() > 1.5 * plain.min()


@pytest.mark.parametrize("method", (*ITERATIONS, "svd"))
def test_null_directions_stay_null(method):
    x = np.asarray(normal(16, 5)) @ np.asarray(normal(5, 40, seed=1))
    values = singular_values(polar(x, method))
    assert values[4] > 0.5 and values[5:].max() < 1e-3
    masked = np.array(normal(*WIDE))
    masked[:, 3] = 0
    assert np.abs(np.asarray(polar(masked, method))[:, 3]).max() < 1e-6
    assert not np.asarray(polar(np.zeros(WIDE, np.float32), method)).any()


@pytest.mark.parametrize("shape", ((1, 1), (1, 7), (7, 1), (2, 0), (0, 3, 2)))
def test_vectors_and_empty_matrices(shape):
    x = normal(*shape)
    for method in ITERATIONS:
        factor = polar(x, method)
        assert factor.shape == shape and np.isfinite(factor).all()
    if shape == (1, 7):
        # p(1), not 1: the map is applied to the norm as to any singular value.
        assert np.linalg.norm(polar(x, "ns5")) == pytest.approx(0.70, abs=0.01)
        assert np.linalg.norm(polar(x, "svd")) == pytest.approx(1, abs=1e-6)


def test_a_nan_stays_in_its_matrix():
    x = np.array(normal(*STACK))
    x[1, 0, 0] = np.nan
    factor = np.asarray(polar(x))
    assert np.isnan(factor[1]).all()
    np.testing.assert_array_equal(factor[0], polar(x[0]))
    np.testing.assert_array_equal(factor[2], polar(x[2]))


def test_a_stack_is_its_matrices_eager_jitted_and_vmapped():
    x = np.asarray(normal(2, *STACK))
    each = np.stack([[polar(matrix) for matrix in row] for row in x])
    for stacked in (polar(x), jax.jit(polar)(x), jax.jit(jax.vmap(jax.vmap(polar)))(x), jax.lax.map(polar, x)):
        np.testing.assert_allclose(stacked, each, atol=1e-5)


@pytest.mark.parametrize("shape", (WIDE, TALL))
def test_complex_matrices(shape):
    x = normal(*shape, dtype=np.complex64)
    u, _, vh = np.linalg.svd(np.asarray(x, np.complex128), full_matrices=False)
    assert relative(polar(x, CONVERGENT), u @ vh) <= 1e-5
    assert relative(polar(x, "svd"), u @ vh) <= 1e-5
    for preconditioning in ("frobenius", "aol", "schatten"):
        factor = polar(x, preconditioning=preconditioning, dtype=jnp.bfloat16)
        assert factor.dtype == jnp.complex64 and np.isfinite(factor).all()
        assert np.linalg.svd(factor, compute_uv=False).min() > 0.5


def test_a_function_gets_the_wide_scaled_matrix():
    seen = {}

    def newton(x):
        seen.update(shape=x.shape, dtype=x.dtype, norm=np.linalg.norm(np.asarray(x, np.float32)))
        return x

    out = polar(np.asarray(normal(9, 4)) * np.float32(7), newton, dtype=jnp.bfloat16, safety=2.0)
    assert seen == {"shape": (4, 9), "dtype": jnp.bfloat16, "norm": pytest.approx(0.5, rel=1e-2)}
    assert out.shape == (9, 4) and out.dtype == jnp.float32


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16, jnp.float32))
def test_the_dtype_is_kept(dtype):
    assert polar(np.asarray(normal(*WIDE)).astype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    "x,options,message",
    (
        (np.ones(3, np.float32), {"name": "blocks/norm/scale"}, r"blocks/norm/scale has shape \(3,\)"),
        (np.ones((), np.float32), {}, "rank 2"),
        (np.ones(SQUARE, np.float32), {"method": "newton"}, "unknown polar method 'newton'"),
        (np.ones(SQUARE, np.float32), {"preconditioning": "spectral"}, "unknown preconditioning 'spectral'"),
    ),
)
def test_errors(x, options, message):
    with pytest.raises(ValueError, match=message):
        polar(x, **options)


jitted = jax.jit(polar)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from(((1, 3), (5, 3))),
    exponent=st.integers(-20, 4),
    dtype=st.sampled_from(("float32", "complex64")),
    rank_one=st.booleans(),
    seed=st.integers(0, 9),
)
def test_finite_and_bounded_for_any_input(shape, exponent, dtype, rank_one, seed):
    x = np.asarray(normal(*shape, seed=seed, dtype=dtype))
    x = (x[:, :1] @ x[:1] if rank_one else x) * np.float32(10.0**exponent)
    factor = np.asarray(jitted(x), np.complex128)
    assert np.isfinite(factor).all() and np.linalg.norm(factor) > 0.5
    assert np.linalg.svd(factor, compute_uv=False).max() <= 1.2
