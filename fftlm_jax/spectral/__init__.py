"""Spectral mathematics in plain JAX, usable alone: causal convolution, cosine spectra and band limits of kernels."""

from fftlm_jax.spectral.convolve import (
    CONVOLUTION_METHODS,
    ConvolutionMethod,
    causal_convolve,
)
from fftlm_jax.spectral.cosine import cosine_basis, cosine_mask, spectrum_to_taps, taps_to_spectrum
from fftlm_jax.spectral.fft_convolve import fast_fft_length
from fftlm_jax.spectral.low_pass import (
    LOW_PASS_METHODS,
    LowPass,
    LowPassMethod,
    kernel_taps,
    low_pass_kernel,
    low_pass_signal,
    low_pass_taps,
    mask_spectrum,
    minimum_phase_taps,
    no_filter,
)
from fftlm_jax.spectral.toeplitz import convolve_window, toeplitz_matrix
