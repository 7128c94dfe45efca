"""Band limits: nested projections, the identity at full band, causal but for the `signal` method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fftlm_jax.config.cutoff import coefficients_passed
from fftlm_jax.spectral import (
    LowPass,
    causal_convolve,
    cosine_basis,
    cosine_mask,
    kernel_taps,
    low_pass_kernel,
    low_pass_signal,
    mask_spectrum,
    minimum_phase_taps,
    no_filter,
    spectrum_to_taps,
    taps_to_spectrum,
)

BINS, K = 513, 128
LADDER = (64, 128, 256, 512, BINS)


def kernels(seed: int = 0, heads: int = 4) -> jnp.ndarray:
    return jax.random.normal(jax.random.key(seed), (heads, K))


@pytest.mark.parametrize("k", (1, 2, 7, 128))
def test_the_cosine_basis_is_orthonormal(k):
    np.testing.assert_allclose(cosine_basis(k) @ cosine_basis(k).T, np.eye(k), atol=1e-12)


def test_spectrum_and_taps_are_inverse():
    np.testing.assert_allclose(spectrum_to_taps(taps_to_spectrum(kernels())), kernels(), atol=2e-6)


def test_coefficient_m_is_the_frequency_m_over_k_of_nyquist():
    """The spectrum of a long cosine at that frequency peaks at m."""
    for m in (5, 40, 100):
        wave = np.cos(np.pi * (np.arange(K) + 0.5) * m / K)
        assert np.argmax(np.abs(taps_to_spectrum(jnp.asarray(wave, jnp.float32)))) == m


@pytest.mark.parametrize("method", ("cosine", "minimum_phase"))
def test_full_is_exactly_the_identity(method):
    np.testing.assert_array_equal(low_pass_kernel(kernels(), BINS, BINS, method), kernels())


@pytest.mark.parametrize("cutoff", LADDER)
def test_the_cosine_filter_is_an_orthogonal_projection(cutoff):
    """Idempotent and self-adjoint."""
    once = low_pass_kernel(kernels(), cutoff, BINS)
    np.testing.assert_allclose(low_pass_kernel(once, cutoff, BINS), once, atol=2e-6)
    other = kernels(1)
    left, right = jnp.vdot(once, other), jnp.vdot(kernels(), low_pass_kernel(other, cutoff, BINS))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("low,high", list(zip(LADDER, LADDER[1:])))
def test_masks_are_nested(low, high):
    """Filtering by both is filtering by the narrower, in either order."""
    narrow = low_pass_kernel(kernels(), low, BINS)
    np.testing.assert_allclose(low_pass_kernel(narrow, high, BINS), narrow, atol=2e-6)
    np.testing.assert_allclose(low_pass_kernel(low_pass_kernel(kernels(), high, BINS), low, BINS), narrow, atol=2e-6)
    small, large = (cosine_mask(coefficients_passed(c, BINS, K), K) for c in (low, high))
    assert (small <= large).all()


def test_a_raise_does_not_change_coefficients_that_were_masked_at_zero():
    spectrum = mask_spectrum(kernels(), LowPass(128, BINS))
    for cutoff in (128, 256, 512, BINS):
        np.testing.assert_array_equal(mask_spectrum(spectrum, LowPass(cutoff, BINS)), spectrum)


def test_gradients_of_masked_coefficients_are_exactly_zero():
    low_pass = LowPass(128, BINS)
    gradient = jax.grad(lambda a: (kernel_taps(a, low_pass) ** 3).sum())(kernels())
    passed = coefficients_passed(128, BINS, K)
    assert (gradient[:, passed:] == 0).all() and (gradient[:, :passed] != 0).all()


@pytest.mark.parametrize("cutoff", (128, 256, 480))
def test_minimum_phase_has_the_wanted_magnitude(cutoff):
    """Ones below the transition, at most -40 dB above the cutoff, for the untruncated response."""
    response = minimum_phase_taps(cutoff, BINS, 32, 16384)
    n = 1 << 17
    magnitude = np.abs(np.fft.rfft(response, n))
    frequency = np.arange(n // 2 + 1) / (n // 2) * (BINS - 1)
    np.testing.assert_allclose(magnitude[frequency < cutoff - 33], 1.0, atol=1e-3)
    assert magnitude[frequency > cutoff + 1].max() < 10 ** (-40 / 20)


def test_minimum_phase_design_grid_is_fine_enough():
    """A grid four times finer moves no tap by more than float32 round-off."""
    coarse = minimum_phase_taps(128, BINS, 32, K)
    fine = minimum_phase_taps(128 * 4, (BINS - 1) * 4 + 1, 32 * 4, K)
    np.testing.assert_allclose(coarse, fine, atol=1e-6)


def test_minimum_phase_filters_by_convolution():
    response = minimum_phase_taps(128, BINS, 32, K)
    filtered = np.asarray(low_pass_kernel(kernels(), 128, BINS, "minimum_phase"))
    for h in range(4):
        np.testing.assert_allclose(filtered[h], np.convolve(np.asarray(kernels()[h], float), response)[:K], atol=1e-5)


def stop_band_db(taps, cutoff, method) -> float:
    """Energy above the cutoff over all energy."""
    energy = np.abs(np.fft.rfft(np.asarray(low_pass_kernel(taps, cutoff, BINS, method)), 8192)) ** 2
    return 10 * np.log10(energy[:, 4096 * cutoff // (BINS - 1) :].sum() / energy.sum())


@pytest.mark.parametrize("cutoff", (128, 256))
def test_the_stop_bands_are_what_the_docs_say(cutoff):
    """Weak for `cosine`, deep for `minimum_phase`: the reason to accept its delay and its jumps."""
    white, delta = kernels(heads=200), jnp.eye(1, K)
    decaying = white * jnp.exp(-jnp.arange(K) / 20)
    assert -20 < stop_band_db(white, cutoff, "cosine") < -15
    assert -13 < stop_band_db(decaying, cutoff, "cosine") < -10
    assert -6 < stop_band_db(delta, cutoff, "cosine") < -5
    assert stop_band_db(decaying, cutoff, "minimum_phase") < -50


@pytest.mark.parametrize("cutoff", LADDER)
@pytest.mark.parametrize("method", ("cosine", "minimum_phase"))
def test_filtered_kernels_see_no_future(method, cutoff):
    u = np.random.default_rng(0).normal(size=(1, 256, 4)).astype(np.float32)
    taps = low_pass_kernel(kernels(), cutoff, BINS, method)
    changed = u.copy()
    changed[:, 100] += 5.0
    before, after = causal_convolve(u, taps, "toeplitz"), causal_convolve(changed, taps, "toeplitz")
    np.testing.assert_array_equal(before[:, :100], after[:, :100])


@pytest.mark.parametrize("cutoff", (128, 256))
def test_negative_control_the_signal_method_sees_the_future(cutoff):
    """The same perturbation test must fail for it, or the test would prove nothing."""
    u = np.random.default_rng(0).normal(size=(1, 1024, 4)).astype(np.float32)
    changed = u.copy()
    changed[:, 500] += 5.0
    low_pass = LowPass(cutoff, BINS, "signal")
    filtered = lambda u: np.asarray(low_pass_signal(causal_convolve(u, kernels(), "toeplitz"), low_pass, K))
    difference = np.abs(filtered(changed) - filtered(u))[0]
    assert difference[:500].max() > 0.2 * difference[500:].max()


def test_the_signal_method_passes_what_lies_below_its_cutoff():
    t = np.arange(1024)
    slow, fast = (np.sin(2 * np.pi * bin_ / 1024 * t) for bin_ in (40, 300))
    y = jnp.asarray((slow + fast)[None, :, None], jnp.float32)
    filtered = np.asarray(low_pass_signal(y, LowPass(128, BINS, "signal"), K))[0, 100:900, 0]
    assert np.abs(filtered - slow[100:900]).max() < 0.1
    np.testing.assert_array_equal(low_pass_signal(y, LowPass(BINS, BINS, "signal"), K), y)


@pytest.mark.parametrize(
    "cutoff,method,key",
    (
        (512, "cosine", ("full", 0)),  # 128 coefficients of 128: nothing is left to open at the raise to full.
        (BINS, "cosine", ("full", 0)),
        (128, "cosine", ("cosine", 32)),
        (512, "minimum_phase", ("minimum_phase", 512)),
        (BINS, "signal", ("full", 0)),
    ),
)
def test_mask_keys(cutoff, method, key):
    assert LowPass(cutoff, BINS, method).mask_key(K) == key


def test_bad_band_limits_are_refused():
    with pytest.raises(ValueError, match="514 lies outside"):
        low_pass_kernel(kernels(), 514, BINS)
    with pytest.raises(ValueError, match="none of cosine"):
        LowPass(3, BINS, "brickwall")
    with pytest.raises(ValueError, match="filters signals, not kernels"):
        low_pass_kernel(kernels(), 128, BINS, "signal")
    assert no_filter(1024).is_full
