"""Spectral mathematics in plain JAX, usable alone: causal convolution, cosine spectra and band limits of kernels."""

from fftlm_jax.spectral.convolve import (
    CONVOLUTION_METHODS,
    ConvolutionMethod,
    causal_convolve,
    convolve_window,
    fast_fft_length,
    toeplitz_matrix,
)
from fftlm_jax.spectral.low_pass import (
    LOW_PASS_METHODS,
    LowPass,
    LowPassMethod,
    cosine_basis,
    cosine_mask,
    kernel_taps,
    low_pass_kernel,
    low_pass_signal,
    low_pass_taps,
    mask_spectrum,
    minimum_phase_taps,
    no_filter,
    spectrum_to_taps,
    taps_to_spectrum,
)
