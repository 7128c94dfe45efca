"""Causal convolution: every method equals numpy.convolve, in values and gradients, and none sees the future."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.spectral import causal_convolve, fast_fft_length
from fftlm_jax.spectral.convolve import choose_method, toeplitz_block_length, toeplitz_matrix

METHODS = ("direct", "fft", "toeplitz")

# (case, T, H, d, K)
SHAPES = [
    ("kernel shorter than a block", 50, 2, 3, 5),
    ("kernel longer than the window", 20, 1, 2, 33),
    ("kernel as long as the window", 24, 2, 1, 24),
    ("one tap", 40, 3, 1, 1),
    ("one position", 1, 2, 2, 4),
    ("several blocks", 300, 2, 2, 64),
    ("taps that do not divide the window", 333, 1, 2, 130),
    ("kernel reaching over many blocks", 500, 1, 1, 300),
]


FORMS = ("one by one", "at once")  # Heads follow each other on CPU, accelerators take all of them at once.
AS_ON_CPU = FORMS[0]
LONG = (160, 2, 2, 64)  # A window of two blocks and a half.


@functools.cache
def compiled(method: str, form: str):
    """(inputs, taps, g) -> outputs y and the gradients of <g, y> in inputs and taps, compiled once for each shape.

    `form` is that of `toeplitz`, one of FORMS.
    """

    @jax.jit
    def all_of(u, kernel, g):
        with pytest.MonkeyPatch.context() as monkeypatch:  # While it is traced.
            monkeypatch.setattr("fftlm_jax.spectral.convolve._one_by_one", lambda dtype: form == AS_ON_CPU)
            y, transpose = jax.vjp(lambda u, kernel: causal_convolve(u, kernel, method), u, kernel)
            return y, *transpose(g)

    return lambda u, kernel, g=None: jax.device_get(all_of(u, kernel, np.zeros_like(u) if g is None else g))


def convolve(u: np.ndarray, kernel: np.ndarray, method: str, form: str = AS_ON_CPU) -> np.ndarray:
    return compiled(method, form)(u, kernel)[0]


def random_case(T: int, H: int, d: int, K: int, B: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, T, H * d)).astype(np.float32), rng.normal(size=(H, K)).astype(np.float32)


def numpy_reference(u: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    B, T, D = u.shape
    d = D // len(kernel)
    y = np.empty((B, T, D))
    for b in range(B):
        for c in range(D):
            y[b, :, c] = np.convolve(u[b, :, c].astype(float), kernel[c // d].astype(float))[:T]
    return y


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case,T,H,d,K", SHAPES)
def test_values_equal_numpy(method, case, T, H, d, K):
    u, kernel = random_case(T, H, d, K)
    y = convolve(u, kernel, method)
    np.testing.assert_allclose(y, numpy_reference(u, kernel), atol=2e-5 * np.sqrt(K))


def numpy_gradients(u: np.ndarray, kernel: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of <g, y>: both are correlations that NumPy computes directly."""
    (_, T, D), (H, K) = u.shape, kernel.shape
    du = numpy_reference(g[:, ::-1], kernel)[:, ::-1]
    dk = np.zeros((H, K))
    for h in range(H):
        heads = slice(h * D // H, (h + 1) * D // H)
        for i in range(min(K, T)):
            dk[h, i] = np.sum(g[:, i:, heads].astype(float) * u[:, : T - i, heads])
    return du, dk


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case,T,H,d,K", SHAPES)
def test_gradients_equal_numpy(method, case, T, H, d, K):
    u, kernel = random_case(T, H, d, K)
    g = np.random.default_rng(1).normal(size=u.shape).astype(np.float32)
    _, du, dk = compiled(method, AS_ON_CPU)(u, kernel, g)
    expected_du, expected_dk = numpy_gradients(u, kernel, g)
    np.testing.assert_allclose(du, expected_du, atol=2e-5 * np.sqrt(K))
    np.testing.assert_allclose(dk, expected_dk, atol=2e-5 * np.sqrt(u.size))


@settings(max_examples=6, deadline=None)
@given(T=st.integers(1, 90), K=st.integers(1, 100), H=st.integers(1, 3), d=st.integers(1, 2))
def test_methods_agree_on_any_shape(T, K, H, d):
    u, kernel = random_case(T, H, d, K)
    for method in ("fft", "toeplitz"):
        found = jax.jit(causal_convolve, static_argnums=2)(u, kernel, method)
        np.testing.assert_allclose(found, numpy_reference(u, kernel), atol=1e-4)


@pytest.mark.parametrize("method", ("direct", "toeplitz"))
def test_bfloat16_keeps_its_dtype_and_is_close(method):
    u, kernel = random_case(*LONG)
    y = convolve(u.astype(jnp.bfloat16), kernel, method)
    assert y.dtype == jnp.bfloat16
    reference = numpy_reference(u, kernel)
    assert np.abs(y.astype(float) - reference).max() < 0.03 * np.abs(reference).max()


@pytest.mark.parametrize("t", (0, 1, 63, 64, 65, 100, 127, 128, 150))
@pytest.mark.parametrize("method,tolerance", (("direct", 0.0), ("toeplitz", 0.0), ("fft", 1e-6)))
def test_a_changed_input_moves_no_earlier_output(method, tolerance, t):
    """At, before and inside block borders; exactly for the matmul forms, to round-off for the FFT."""
    u, kernel = random_case(*LONG)
    changed = u.copy()
    changed[:, t] += 10.0
    before, after = convolve(u, kernel, method), convolve(changed, kernel, method)
    scale = np.abs(after).max()
    np.testing.assert_allclose(before[:, :t], after[:, :t], atol=tolerance * scale, rtol=0)
    assert not np.allclose(before[:, t], after[:, t])


@pytest.mark.parametrize("t", (64, 128, 130))
def test_nan_stays_out_of_earlier_toeplitz_blocks(t):
    """Inside its own block 0 * NaN is NaN; no earlier block may see it."""
    u, kernel = random_case(*LONG)
    assert toeplitz_block_length(160, 64) == 64
    u[:, t] = np.nan
    y = convolve(u, kernel, "toeplitz")
    assert np.isfinite(y[:, : t // 64 * 64]).all()
    assert np.isnan(y[:, t]).all()


@pytest.mark.parametrize("method,tolerance", (("direct", 0.0), ("toeplitz", 0.0), ("fft", 1e-6)))
@pytest.mark.parametrize("t", (0, 31, 64, 159))
def test_an_output_has_no_gradient_from_later_inputs(method, tolerance, t):
    u, kernel = random_case(*LONG)
    at_t = np.zeros_like(u)
    at_t[:, t] = 1
    _, gradient, _ = compiled(method, AS_ON_CPU)(u, kernel, at_t)
    assert np.abs(gradient[:, t + 1 :]).max(initial=0.0) <= tolerance * np.abs(gradient).max()
    assert np.abs(gradient[:, t]).max() > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case,T,H,d,K", SHAPES)
def test_both_forms_of_toeplitz_are_causal_and_have_the_values_and_gradients_of_numpy(form, case, T, H, d, K):
    u, kernel = random_case(T, H, d, K)
    g = np.random.default_rng(1).normal(size=u.shape).astype(np.float32)
    changed = u.copy()
    changed[:, T // 2] += 10.0
    y, du, dk = compiled("toeplitz", form)(u, kernel, g)
    expected_du, expected_dk = numpy_gradients(u, kernel, g)
    np.testing.assert_allclose(y, numpy_reference(u, kernel), atol=2e-5 * np.sqrt(K))
    np.testing.assert_allclose(du, expected_du, atol=2e-5 * np.sqrt(K))
    np.testing.assert_allclose(dk, expected_dk, atol=2e-5 * np.sqrt(u.size))
    np.testing.assert_array_equal(y[:, : T // 2], convolve(changed, kernel, "toeplitz", form)[:, : T // 2])


@functools.cache
def second_derivatives(method: str):
    """Reverse over reverse: the gradients of the gradients, in inputs and taps, of a model of two layers."""
    (u, kernel), (du, dkernel) = random_case(70, 2, 2, 40), random_case(70, 2, 2, 40, seed=1)
    kernel_LHK, dkernel_LHK = (np.stack([x, x[:, ::-1]]) / 6 for x in (kernel, dkernel))

    def loss(u, kernel_LHK):
        layer = lambda x, kernel_HK: (jnp.tanh(causal_convolve(x, kernel_HK, method)), None)
        return jnp.sum(jnp.sin(jax.lax.scan(layer, u, kernel_LHK)[0]))

    def slope(u, kernel_LHK):
        gradients = jax.grad(loss, (0, 1))(u, kernel_LHK)
        return jnp.vdot(gradients[0], du) + jnp.vdot(gradients[1], dkernel_LHK)

    return jax.device_get(jax.jit(jax.grad(slope, (0, 1)))(u, kernel_LHK))


@pytest.mark.parametrize("method,form", (("fft", ""), ("toeplitz", "one by one"), ("toeplitz", "at once")))
def test_second_derivatives_through_a_scan_over_layers_equal_those_of_direct(method, form, monkeypatch):
    expected = second_derivatives("direct")
    assert min(float(np.abs(x).max()) for x in expected) > 0.1, "no product of nothing"
    monkeypatch.setattr("fftlm_jax.spectral.convolve._one_by_one", lambda dtype: form == "one by one")
    found = second_derivatives.__wrapped__(method)
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_gradient_of_the_fft_path_has_no_complex_to_complex_transform():
    """It would do twice the work; jax's transpose of rfft did so once."""
    u, kernel = (jnp.asarray(x) for x in random_case(64, 2, 4, 16))
    gradient = jax.jit(jax.grad(lambda u, k: (causal_convolve(jnp.tanh(u), k, "fft") ** 2).sum(), (0, 1)))
    text = gradient.lower(u, kernel).compile().as_text()
    assert "fft_type=RFFT" in text and "fft_type=IRFFT" in text
    assert "fft_type=FFT" not in text and "fft_type=IFFT" not in text


@pytest.mark.parametrize(
    "minimum,expected", ((1, 2), (2, 2), (7, 8), (1151, 1152), (1152, 1152), (1153, 1200), (2047, 2048))
)
def test_fast_fft_length(minimum, expected):
    assert fast_fft_length(minimum) == expected


def test_fast_fft_length_is_the_smallest_smooth_even_number():
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for minimum in range(1, 700):
        expected = next(n for n in range(max(2, minimum), 4 * minimum + 2) if n % 2 == 0 and smooth(n))
        assert fast_fft_length(minimum) == expected


def test_toeplitz_matrix_is_the_convolution_matrix():
    kernel = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3)
    matrix = np.asarray(jax.jit(lambda kernel: toeplitz_matrix(kernel, block=4, window=8))(kernel))
    for h in range(2):
        for i in range(8):
            for l in range(4):
                lag = 4 + l - i
                assert matrix[h, i, l] == (kernel[h, lag] if 0 <= lag < 3 else 0)


def test_auto_is_a_fixed_rule_of_taps_and_platform():
    assert choose_method(32, 1024, "cpu") == "toeplitz"
    assert choose_method(33, 1024, "cpu") == "fft"
    assert choose_method(4096, 30, "cpu") == "toeplitz", "taps beyond the window do not count"
    assert choose_method(512, 1024, "gpu") == choose_method(512, 1024, "tpu") == "toeplitz"


def test_it_compiles_once():
    u, kernel = (jnp.asarray(x) for x in random_case(64, 2, 2, 8))
    traced_once = jax.jit(chex.assert_max_traces(lambda u, k: causal_convolve(u, k), n=1))
    np.testing.assert_array_equal(traced_once(u, kernel), traced_once(u, kernel))


def test_bad_arguments_are_refused_by_name():
    u, kernel = (jnp.asarray(x) for x in random_case(8, 2, 2, 3))
    with pytest.raises(ValueError, match="3 conv heads do not divide 4 channels"):
        causal_convolve(u, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="'ftt' is none of"):
        causal_convolve(u, kernel, "ftt")
    with pytest.raises(AssertionError):
        causal_convolve(u[0], kernel)


def test_toeplitz_needs_a_third_of_the_memory_of_the_fft_on_cpu():
    """Forward and backward at the size that is published, by the compiler's account: heads follow each other."""
    u, kernel = jnp.zeros((4, 1024, 512)), jnp.zeros((8, 128))

    def both(u, kernel, dy, method):
        y, transpose = jax.vjp(lambda u, kernel: causal_convolve(u, kernel, method), u, kernel)
        return y, transpose(dy)

    def temporary_bytes(method):
        compiled = jax.jit(both, static_argnums=3).lower(u, kernel, u, method).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes("toeplitz") <= temporary_bytes("fft") / 3
