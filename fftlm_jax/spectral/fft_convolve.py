"""Causal convolution by real FFTs of the zero-padded window, in float32.

Shapes: B batch, T time, D = H * d channels, H conv heads, K taps, F frequency bins.
"""

import jax
import jax.numpy as jnp


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
