"""Causal long convolution with per-head kernels, directly or by FFT.

Causal convolution by real FFTs of the zero-padded window, in float32.

Shapes: B batch, T time, D = H * d channels, H conv heads, K taps, F frequency bins.

Causal long convolution of byte streams with per-head kernels: `y[t] = sum_i k[i] u[t-i]`, linear, never circular.

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

from fftlm_jax.spectral.toeplitz import toeplitz_convolve


def fast_fft_length(minimum: int) -> int:
    """Smallest even 2^a 3^b 5^c that is at least `minimum`: 1152, not 2048, for 1024 + 127."""
    best = 1 << max(1, (minimum - 1).bit_length())
    five = 1
    while five < best:
        three = five
        while three < best:
            n = three * 2
            while n < minimum:
                n *= 2
            best = min(best, n)
            three *= 3
        five *= 5
    return best


def fft_convolve(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    """Every channel with its head's kernel, [B, T, D] x [H, K] -> [B, T, D] in the dtype of the inputs; K at most T."""
    return _convolve(u_BTD.astype(jnp.float32), kernel_HK.astype(jnp.float32)).astype(u_BTD.dtype)


@jax.custom_vjp
def _convolve(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    return _forward(u_BTD, kernel_HK)[0]


def _forward(u_BTD: jax.Array, kernel_HK: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    T, (H, K) = u_BTD.shape[1], kernel_HK.shape
    n = fast_fft_length(T + K - 1)
    U_BHdF, k_HF = _transform(u_BTD, H, n), jnp.fft.rfft(kernel_HK, n=n)
    return _transform_back(U_BHdF * k_HF[:, None], n, T), (U_BHdF, k_HF, kernel_HK)


def _backward(saved: tuple[jax.Array, ...], dy_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Correlations by the same real transforms: JAX's own rule for rfft has been a full complex FFT before."""
    U_BHdF, k_HF, kernel_HK = saved
    T, (H, K) = dy_BTD.shape[1], kernel_HK.shape
    n = fast_fft_length(T + K - 1)
    Y_BHdF = _transform(dy_BTD, H, n)
    du_BTD = _transform_back(Y_BHdF * k_HF.conj()[:, None], n, T)
    dk_HK = jnp.fft.irfft(jnp.sum(Y_BHdF * U_BHdF.conj(), axis=(0, 2)), n=n)[:, :K]
    return du_BTD, dk_HK


_convolve.defvjp(_forward, _backward)


def _transform(x_BTD: jax.Array, heads: int, n: int) -> jax.Array:
    """Spectra of zero-padded signals, time last, which is where XLA's FFTs want it.

    Padded before they are transposed: XLA would fuse a later padding with the transpose into one slow loop.
    """
    B, T, D = x_BTD.shape
    x_BDn = jnp.pad(x_BTD, ((0, 0), (0, n - T), (0, 0))).swapaxes(1, 2)
    return jnp.fft.rfft(x_BDn.reshape(B, heads, D // heads, n))


def _transform_back(Y_BHdF: jax.Array, n: int, seq_len: int) -> jax.Array:
    """The first `seq_len` values of signals [B, T, D] with these spectra."""
    y_BHdn = jnp.fft.irfft(Y_BHdF, n=n)
    return y_BHdn.reshape(y_BHdn.shape[0], -1, n).swapaxes(1, 2)[:, :seq_len]


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
