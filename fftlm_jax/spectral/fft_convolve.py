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
    """Every channel with its head's kernel, [B, T, D] x [H, K] -> [B, T, D]; K at most T."""
    # Channel-major while transforming: XLA's FFTs want the transformed axis last.
    u_BDT = _swap_time_and_channels(u_BTD.astype(jnp.float32))
    return _channel_major(u_BDT, kernel_HK.astype(jnp.float32)).swapaxes(1, 2).astype(u_BTD.dtype)


@jax.custom_vjp
def _channel_major(u_BDT: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    return _forward(u_BDT, kernel_HK)[0]


def _forward(u_BDT: jax.Array, kernel_HK: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    (B, D, T), (H, K) = u_BDT.shape, kernel_HK.shape
    n = fast_fft_length(T + K - 1)
    U_BHdF = jnp.fft.rfft(u_BDT.reshape(B, H, D // H, T), n=n)
    k_HF = jnp.fft.rfft(kernel_HK, n=n)
    y_BHdT = jnp.fft.irfft(U_BHdF * k_HF[:, None], n=n)[..., :T]
    return y_BHdT.reshape(B, D, T), (U_BHdF, k_HF, kernel_HK)


def _backward(saved: tuple[jax.Array, ...], dy_BDT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Correlations by the same real transforms: JAX's own rule for rfft has been a full complex FFT before."""
    U_BHdF, k_HF, kernel_HK = saved
    (B, D, T), (H, K) = dy_BDT.shape, kernel_HK.shape
    n = fast_fft_length(T + K - 1)
    Y_BHdF = jnp.fft.rfft(dy_BDT.reshape(B, H, D // H, T), n=n)
    du_BHdT = jnp.fft.irfft(Y_BHdF * k_HF.conj()[:, None], n=n)[..., :T]
    dk_HK = jnp.fft.irfft(jnp.sum(Y_BHdF * U_BHdF.conj(), axis=(0, 2)), n=n)[:, :K]
    return du_BHdT.reshape(B, D, T), dk_HK


_channel_major.defvjp(_forward, _backward)


@jax.custom_vjp
def _swap_time_and_channels(x_BTD: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, D, T], kept apart from the padding that follows: fused with it, XLA takes 2 ms longer of 6."""
    return jax.lax.optimization_barrier(x_BTD.swapaxes(1, 2))


_swap_time_and_channels.defvjp(
    lambda x: (_swap_time_and_channels(x), None), lambda _, dy: (_swap_time_and_channels(dy),)
)
