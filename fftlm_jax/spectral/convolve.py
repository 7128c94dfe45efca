"""Causal long convolution of byte streams with per-head kernels: `y[t] = sum_i k[i] u[t-i]`, linear, never circular.

Three methods, equal to round-off:

`direct`    a loop over taps; the reference for tests.
`fft`       rfft/irfft of the zero-padded window; float32 always. Round-off mixes all positions, so its outputs depend
            on later inputs by about 1e-7 of their size.
`toeplitz`  blocks of outputs as matmuls with a banded Toeplitz matrix. Exactly causal, fast on matmul hardware, in
            bfloat16 too.

Shapes: B batch, T time, D = H * d channels, H conv heads, K taps.
Channel j of head h is channel `h * d + j` and uses kernel h. No method treats a NaN as zero, so a NaN reaches every
later output in reach; inside its own Toeplitz block it reaches earlier ones too (0 * NaN), never earlier blocks.

`fft` and `toeplitz` have gradients of their own, to any order in reverse mode; for forward mode take `direct`.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from fftlm_jax.spectral.fft_convolve import fft_convolve
from fftlm_jax.spectral.toeplitz import toeplitz_convolve

ConvolutionMethod = Literal["auto", "direct", "fft", "toeplitz"]
CONVOLUTION_METHODS: tuple[ConvolutionMethod, ...] = ("auto", "direct", "fft", "toeplitz")


def causal_convolve(u_BTD: jax.Array, kernel_HK: jax.Array, method: ConvolutionMethod = "auto") -> jax.Array:
    """Convolves every channel with its head's kernel, strictly causally.

    Args:
        u_BTD: inputs, float32 or bfloat16.
        kernel_HK: taps, `kernel_HK[:, i]` multiplying the input i steps ago. H must divide D. K may exceed T.
        method: `direct`, `fft`, `toeplitz`, or `auto` (see `choose_method`).

    Returns:
        y_BTD, in the dtype of `u_BTD`.

    Raises:
        ValueError: for an unknown method or a width that the heads do not divide.
    """
    chex.assert_rank([u_BTD, kernel_HK], [3, 2])
    T, D = u_BTD.shape[1:]
    H, K = kernel_HK.shape
    if D % H:
        raise ValueError(f"{H} conv heads do not divide {D} channels")
    kernel_HK = kernel_HK[:, :T]  # Taps beyond the window only ever meet zeros.
    if method == "auto":
        method = choose_method(K, T, jax.default_backend())
    if method == "direct":
        return _direct(u_BTD, kernel_HK)
    if method == "fft":
        return fft_convolve(u_BTD, kernel_HK)
    if method == "toeplitz":
        return toeplitz_convolve(u_BTD, kernel_HK)
    raise ValueError(f"convolution method {method!r} is none of {', '.join(CONVOLUTION_METHODS)}")


def choose_method(kernel_len: int, seq_len: int, platform: str) -> ConvolutionMethod:
    """The fixed rule behind `auto`, read off `experiments/bench.py`; never timed at start-up, so runs repeat.

    Toeplitz up to 32 taps on CPU (at 64 the two are equally fast, or the FFT is by 7 %), and up to 1024 on
    accelerators, which multiply matrices far faster than they transform (by arithmetic, unmeasured).
    """
    return "toeplitz" if min(kernel_len, seq_len) <= (32 if platform == "cpu" else 1024) else "fft"


def _direct(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    kernel_KD = jnp.repeat(kernel_HK, u_BTD.shape[2] // kernel_HK.shape[0], axis=0).T.astype(jnp.float32)

    def add_tap(carry: tuple[jax.Array, jax.Array], tap_D: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        delayed, y = carry
        return (jnp.pad(delayed[:, :-1], ((0, 0), (1, 0), (0, 0))), y + tap_D * delayed), None

    u = u_BTD.astype(jnp.float32)
    (_, y), _ = jax.lax.scan(add_tap, (u, jnp.zeros_like(u)), kernel_KD)
    return y.astype(u_BTD.dtype)
