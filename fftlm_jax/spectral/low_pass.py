"""The frequency cutoff: masks on cosine spectra of kernels, and low-pass filters.

The kernel's cosine spectrum: the orthonormal DCT-II over the taps, and the nested masks on it.

The frequency cutoff as an operation on kernels (causal) or on signals (not causal).

A causal filter cannot vanish on a band (Paley-Wiener), so one of "only c bins pass" and "causal" must give a little.
Here causality never gives:

`cosine`         masks the kernel's cosine spectrum. Zero delay, exactly the identity at full band, masks nested. The
                 stop-band is that of a truncated series: -16 to -19 dB for white random kernels, -10 to -12 dB for
                 decaying ones, -5 dB for a delta (energy above a quarter or half band; measured).
`minimum_phase`  convolves the kernel with the minimum-phase low-pass of the wanted magnitude and keeps K taps. A
                 guaranteed stop-band, paid for with some 20-40 taps of delay and a jump at every raise.
`signal`         zeroes rfft bins of the padded signal, as the original program did. It rings both ways and so sees
                 the future inside the window; kept for comparison, and refused wherever that would flatter a loss.

Shapes: B batch, T time, D channels, H conv heads, K taps.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.config import cutoff as units


@functools.lru_cache(maxsize=32)
def cosine_basis(kernel_len: int) -> np.ndarray:
    """Orthonormal DCT-II matrix C[K, K], float64: `spectrum = taps @ C.T`, `taps = spectrum @ C`.

    Row m is `sqrt(2/K) cos(pi (i + 1/2) m / K)` over taps i (row 0 divided by sqrt 2): the frequency m/K of Nyquist.
    """
    m, i = np.ogrid[:kernel_len, :kernel_len]
    basis = np.sqrt(2.0 / kernel_len) * np.cos(np.pi * (i + 0.5) * m / kernel_len)
    basis[0] /= np.sqrt(2.0)
    basis.setflags(write=False)
    return basis


def cosine_mask(passed: int, kernel_len: int) -> np.ndarray:
    """Mask[K] of ones for the first `passed` coefficients. A smaller mask is nested in every larger one."""
    return (np.arange(kernel_len) < passed).astype(np.float32)


def spectrum_to_taps(spectrum_HK: jax.Array) -> jax.Array:
    """Taps of kernels given by their cosine spectrum, [..., K] -> [..., K]."""
    return _apply(spectrum_HK, cosine_basis(spectrum_HK.shape[-1]))


def taps_to_spectrum(taps_HK: jax.Array) -> jax.Array:
    """Cosine spectrum of taps, [..., K] -> [..., K]; the inverse of `spectrum_to_taps`."""
    return _apply(taps_HK, cosine_basis(taps_HK.shape[-1]).T)


def _apply(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    # The matrix is tiny and constant: full precision costs nothing, and TF32 or bf16 here would break the identities.
    return jnp.matmul(x, jnp.asarray(matrix, x.dtype), precision=jax.lax.Precision.HIGHEST)


LowPassMethod = Literal["cosine", "minimum_phase", "signal"]
LOW_PASS_METHODS: tuple[LowPassMethod, ...] = ("cosine", "minimum_phase", "signal")

# Deepest attenuation of the minimum-phase design; a true zero has no logarithm.
_STOP_BAND_FLOOR_DB = -60.0
# Frequency grid of the cepstral design, in multiples of the kernel length: time aliasing of the cepstrum is below
# float32 round-off there (the tests compare it with a grid four times finer).
_DESIGN_OVERSAMPLING = 64


@dataclasses.dataclass(frozen=True)
class LowPass:
    """The band limit in force: static, hashable, and an explicit argument of every model call.

    Attributes:
        cutoff: bins that pass; `bins` or more means no filter at all.
        bins: rfft bins of a training window.
        method: `cosine` masks the kernel's cosine spectrum, `minimum_phase` convolves the kernel with a causal
            low-pass, `signal` masks the spectrum of the padded signal (which sees the
            future).
        transition_bins: width of the `minimum_phase` band edge.
    """

    cutoff: int
    bins: int
    method: LowPassMethod = "cosine"
    transition_bins: int = 32

    def __post_init__(self) -> None:
        if self.method not in LOW_PASS_METHODS:
            raise ValueError(f"low-pass method {self.method!r} is none of {', '.join(LOW_PASS_METHODS)}")
        if not 1 <= self.cutoff <= self.bins:
            raise ValueError(f"cutoff {self.cutoff} lies outside 1..{self.bins} bins")

    @property
    def is_full(self) -> bool:
        """True where nothing is filtered, whatever the method."""
        return self.cutoff >= self.bins

    def mask_key(self, kernel_len: int) -> tuple[str, int]:
        """Equal keys compute the same function, so that a raise between them needs no compilation.

        With 128 taps, `cosine` passes all coefficients at 512 of 513 bins already: 512 and full share a key.
        """
        if self.is_full:
            return ("full", 0)
        if self.method != "cosine":
            return (self.method, self.cutoff)
        passed = units.coefficients_passed(self.cutoff, self.bins, kernel_len)
        return ("full", 0) if passed == kernel_len else ("cosine", passed)


def no_filter(seq_len: int) -> LowPass:
    """The full band of windows of `seq_len` bytes."""
    bins = units.freq_bins(seq_len)
    return LowPass(cutoff=bins, bins=bins)


def low_pass_kernel(
    taps_HK: jax.Array, cutoff: int, freq_bins: int, method: LowPassMethod = "cosine", transition_bins: int = 32
) -> jax.Array:
    """Band-limits kernels without ever letting them see the future.

    Args:
        taps_HK: kernels, tap i multiplying the input i steps ago. Shape [..., K].
        cutoff: rfft bins of a training window that pass, 1..freq_bins.
        freq_bins: rfft bins of a training window; `cutoff == freq_bins` returns `taps_HK` unchanged.
        method: `cosine` (an orthogonal projection) or `minimum_phase`.
        transition_bins: width of the raised-cosine band edge of `minimum_phase`.

    Returns:
        Filtered kernels of the same shape.

    Raises:
        ValueError: if the method is `signal`, which is no filter on kernels, or the cutoff is out of range.
    """
    if method == "signal":
        raise ValueError("the `signal` method filters signals, not kernels: use low_pass_signal")
    return low_pass_taps(taps_HK, LowPass(cutoff, freq_bins, method, transition_bins))


def low_pass_taps(taps_HK: jax.Array, low_pass: LowPass) -> jax.Array:
    """Taps under a band limit, for kernels parametrised by their taps. [..., K] -> [..., K].

    `signal` leaves kernels alone: that method acts on the mixer's output (`low_pass_signal`).
    """
    if low_pass.is_full or low_pass.method == "signal":
        return taps_HK
    if low_pass.method == "cosine":
        return spectrum_to_taps(mask_spectrum(taps_to_spectrum(taps_HK), low_pass))
    return _minimum_phase_filtered(taps_HK, low_pass)


def kernel_taps(spectrum_HK: jax.Array, low_pass: LowPass) -> jax.Array:
    """Taps of kernels parametrised by their cosine spectrum, under a band limit. [..., K] -> [..., K].

    `signal` leaves kernels alone: that method acts on the mixer's output (`low_pass_signal`).
    """
    if low_pass.method == "cosine":
        return spectrum_to_taps(mask_spectrum(spectrum_HK, low_pass))
    taps = spectrum_to_taps(spectrum_HK)
    return _minimum_phase_filtered(taps, low_pass) if low_pass.method == "minimum_phase" else taps


def mask_spectrum(spectrum_HK: jax.Array, low_pass: LowPass) -> jax.Array:
    """Zeroes the cosine coefficients above the cutoff; a no-op, not a product with ones, where all pass."""
    kernel_len = spectrum_HK.shape[-1]
    passed = units.coefficients_passed(low_pass.cutoff, low_pass.bins, kernel_len)
    if passed == kernel_len:
        return spectrum_HK
    mask_K = jnp.asarray(cosine_mask(passed, kernel_len), spectrum_HK.dtype)
    return spectrum_HK * jnp.expand_dims(mask_K, tuple(range(spectrum_HK.ndim - 1)))


def low_pass_signal(y_BTD: jax.Array, low_pass: LowPass, kernel_len: int) -> jax.Array:
    """Zeroes rfft bins of the zero-padded signal: NOT causal. The source documents' literal filter, for comparison.

    The transform has length `T + kernel_len - 1` rounded up to an even number; the cutoff is scaled to its bins.

    Args:
        y_BTD: the mixer's output.
        low_pass: the band limit; bins count a window of `2 * (bins - 1)` bytes.
        kernel_len: taps of the mixer, which set the padding.

    Returns:
        The filtered signal, same shape and dtype. Output t depends on inputs after t: a changed byte moves outputs
        before it by up to 85 % of its effect after it.
    """
    if low_pass.is_full:
        return y_BTD
    T = y_BTD.shape[1]
    n = T + kernel_len - 1 + (T + kernel_len - 1) % 2
    Y_BFD = jnp.fft.rfft(y_BTD.astype(jnp.float32), n=n, axis=1)
    passed = max(1, round(units.nyquist_fraction(low_pass.cutoff, low_pass.bins) * (n // 2)))
    mask_F = jnp.arange(Y_BFD.shape[1]) < passed
    return jnp.fft.irfft(Y_BFD * mask_F[None, :, None], n=n, axis=1)[:, :T].astype(y_BTD.dtype)


def _minimum_phase_filtered(taps_HK: jax.Array, low_pass: LowPass) -> jax.Array:
    if low_pass.is_full:
        return taps_HK
    kernel_len = taps_HK.shape[-1]
    response = minimum_phase_taps(low_pass.cutoff, low_pass.bins, low_pass.transition_bins, kernel_len)
    # taps * response, cut to K taps, as one constant upper-triangular matrix: column i holds the response at lag i - j.
    lag = np.arange(kernel_len)[None, :] - np.arange(kernel_len)[:, None]
    matrix = np.where(lag >= 0, response[np.maximum(lag, 0)], 0.0)
    return jnp.matmul(taps_HK, jnp.asarray(matrix, taps_HK.dtype), precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=64)
def minimum_phase_taps(cutoff: int, freq_bins: int, transition_bins: int, kernel_len: int) -> np.ndarray:
    """First `kernel_len` taps of the causal filter of least delay with the wanted magnitude, float64 on the host.

    The magnitude is 1 below `cutoff - transition_bins`, falls as a raised cosine to the floor of -60 dB at `cutoff`
    and stays there. The phase follows from the magnitude by folding the real cepstrum (Oppenheim and Schafer,
    Discrete-Time Signal Processing, section on minimum-phase realisation).
    """
    n = 1 << int(np.ceil(np.log2(_DESIGN_OVERSAMPLING * max(kernel_len, freq_bins))))
    edge = units.nyquist_fraction(cutoff, freq_bins)
    start = units.nyquist_fraction(max(0, cutoff - transition_bins), freq_bins)
    frequency = np.arange(n // 2 + 1) / (n // 2)
    progress = np.clip((frequency - start) / max(edge - start, 1e-12), 0.0, 1.0)
    floor = 10.0 ** (_STOP_BAND_FLOOR_DB / 20)
    magnitude = np.maximum(0.5 * (1 + np.cos(np.pi * progress)), floor)
    cepstrum = np.fft.irfft(np.log(magnitude), n=n)
    cepstrum[1 : n // 2] *= 2.0
    cepstrum[n // 2 + 1 :] = 0.0
    return np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), n=n)[:kernel_len].copy()
