"""Causal long convolution of byte streams with per-head kernels: `y[t] = sum_i k[i] u[t-i]`, linear, never circular.

Three methods, equal to round-off:

`direct`    a loop over taps; the reference for tests.
`fft`       rfft/irfft of the zero-padded window; float32 always. Round-off mixes all positions, so its outputs depend
            on later inputs by about 1e-7 of their size.
`toeplitz`  blocks of outputs as matmuls with a banded Toeplitz matrix. Exactly causal, fast on matmul hardware, in
            bfloat16 too.

Shapes: B batch, T time, D = H * d channels, H conv heads, K taps, N blocks of L outputs, J + 1 input blocks in reach.
Channel j of head h is channel `h * d + j` and uses kernel h. No method treats a NaN as zero, so a NaN reaches every
later output in reach; inside its own Toeplitz block it reaches earlier ones too (0 * NaN), never earlier blocks.

`fft` and `toeplitz` have gradients of their own, to any order in reverse mode; for forward mode take `direct`.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

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
        return _fft(u_BTD, kernel_HK)
    if method == "toeplitz":
        return _toeplitz(u_BTD, kernel_HK)
    raise ValueError(f"convolution method {method!r} is none of {', '.join(CONVOLUTION_METHODS)}")


def choose_method(kernel_len: int, seq_len: int, platform: str) -> ConvolutionMethod:
    """The fixed rule behind `auto`, read off `experiments/bench.py`; never timed at start-up, so runs repeat.

    Toeplitz up to 64 taps on CPU, where the two are equally fast in training, and up to 1024 on accelerators, which
    multiply matrices far faster than they transform (by arithmetic, unmeasured).
    """
    return "toeplitz" if min(kernel_len, seq_len) <= (64 if platform == "cpu" else 1024) else "fft"


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


def _direct(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    kernel_KD = jnp.repeat(kernel_HK, u_BTD.shape[2] // kernel_HK.shape[0], axis=0).T.astype(jnp.float32)

    def add_tap(carry: tuple[jax.Array, jax.Array], tap_D: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        delayed, y = carry
        return (jnp.pad(delayed[:, :-1], ((0, 0), (1, 0), (0, 0))), y + tap_D * delayed), None

    u = u_BTD.astype(jnp.float32)
    (_, y), _ = jax.lax.scan(add_tap, (u, jnp.zeros_like(u)), kernel_KD)
    return y.astype(u_BTD.dtype)


def _fft(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    # Channel-major while transforming: XLA's FFTs want the transformed axis last.
    u_BDT = _swap_time_and_channels(u_BTD.astype(jnp.float32))
    return _fft_channel_major(u_BDT, kernel_HK.astype(jnp.float32)).swapaxes(1, 2).astype(u_BTD.dtype)


@jax.custom_vjp
def _fft_channel_major(u_BDT: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    return _fft_forward(u_BDT, kernel_HK)[0]


def _fft_forward(u_BDT: jax.Array, kernel_HK: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    (B, D, T), (H, K) = u_BDT.shape, kernel_HK.shape
    n = fast_fft_length(T + K - 1)
    U_BHdF = jnp.fft.rfft(u_BDT.reshape(B, H, D // H, T), n=n)
    k_HF = jnp.fft.rfft(kernel_HK, n=n)
    y_BHdT = jnp.fft.irfft(U_BHdF * k_HF[:, None], n=n)[..., :T]
    return y_BHdT.reshape(B, D, T), (U_BHdF, k_HF, kernel_HK)


def _fft_backward(saved: tuple[jax.Array, ...], dy_BDT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Correlations by the same real transforms: JAX's own rule for rfft has been a full complex FFT before."""
    U_BHdF, k_HF, kernel_HK = saved
    (B, D, T), (H, K) = dy_BDT.shape, kernel_HK.shape
    n = fast_fft_length(T + K - 1)
    Y_BHdF = jnp.fft.rfft(dy_BDT.reshape(B, H, D // H, T), n=n)
    du_BHdT = jnp.fft.irfft(Y_BHdF * k_HF.conj()[:, None], n=n)[..., :T]
    dk_HK = jnp.fft.irfft(jnp.sum(Y_BHdF * U_BHdF.conj(), axis=(0, 2)), n=n)[:, :K]
    return du_BHdT.reshape(B, D, T), dk_HK


_fft_channel_major.defvjp(_fft_forward, _fft_backward)


@jax.custom_vjp
def _swap_time_and_channels(x_BTD: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, D, T], kept apart from the padding that follows: fused with it, XLA takes 2 ms longer of 6."""
    return jax.lax.optimization_barrier(x_BTD.swapaxes(1, 2))


_swap_time_and_channels.defvjp(
    lambda x: (_swap_time_and_channels(x), None), lambda _, dy: (_swap_time_and_channels(dy),)
)


def toeplitz_block_length(seq_len: int, kernel_len: int) -> int:
    """Outputs per Toeplitz block: the taps rounded up to a power of two, within 32..128 and the window."""
    return min(seq_len, max(32, min(128, 1 << (kernel_len - 1).bit_length())))


def _toeplitz(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    B, T, D = u_BTD.shape
    H, K = kernel_HK.shape
    L = toeplitz_block_length(T, K)
    N = -(-T // L)
    J = -(-(K - 1) // L)  # Later blocks that K taps reach into.
    blocks_BNLHd = jnp.pad(u_BTD, ((0, 0), (0, N * L - T), (0, 0))).reshape(B, N, L, H, D // H)
    matrix_HIL = toeplitz_matrix(kernel_HK, L, (J + 1) * L).astype(u_BTD.dtype)
    # By the blocks' distance j, nearest first: outputs l of a block from the inputs i of the j-th block before it.
    matrix_HJIL = matrix_HIL.reshape(H, J + 1, L, L)[:, ::-1]
    return _block_toeplitz(blocks_BNLHd, matrix_HJIL).reshape(B, N * L, D)[:, :T].astype(u_BTD.dtype)


@jax.custom_vjp
def _block_toeplitz(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array) -> jax.Array:
    """y[n, l] = sum_j sum_i matrix[j, i, l] x[n - j, i] for every batch row, head and channel; float32."""
    return _to_later_blocks(blocks_BNLHd, matrix_HJIL, 1)


def _to_later_blocks(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array, direction: int) -> jax.Array:
    """Each block times every matrix at once, then sums along the blocks.

    So no window of inputs is ever put together, which on CPU costs as much as the product, and all copies move runs of
    d channels.
    """
    N, J = blocks_BNLHd.shape[1], matrix_HJIL.shape[1]
    terms_HJLBNd = jnp.einsum("hjil,bnihd->hjlbnd", matrix_HJIL, blocks_BNLHd, preferred_element_type=jnp.float32)
    y_HLBNd = terms_HJLBNd[:, 0]
    for j in range(1, min(J, N)):
        here, shift = (slice(None, N - j), (j, 0)) if direction > 0 else (slice(j, None), (0, j))
        y_HLBNd += jnp.pad(terms_HJLBNd[:, j, :, :, here], ((0, 0), (0, 0), (0, 0), shift, (0, 0)))
    return y_HLBNd.transpose(2, 3, 1, 0, 4)


def _block_toeplitz_backward(saved: tuple[jax.Array, jax.Array], dy_BNLHd: jax.Array) -> tuple[jax.Array, jax.Array]:
    blocks_BNLHd, matrix_HJIL = saved
    N, J = blocks_BNLHd.shape[1], matrix_HJIL.shape[1]
    dy_BNLHd = dy_BNLHd.astype(blocks_BNLHd.dtype)
    dx = _to_later_blocks(dy_BNLHd, matrix_HJIL.swapaxes(2, 3), -1).astype(blocks_BNLHd.dtype)
    # One product for all distances: gradients of the j-th block after each, side by side.
    later_JBNLHd = jnp.stack(
        [jnp.pad(dy_BNLHd[:, j:], ((0, 0), (0, min(j, N)), (0, 0), (0, 0), (0, 0))) for j in range(J)]
    )
    dmatrix_HJIL = jnp.einsum("bnihd,jbnlhd->hjil", blocks_BNLHd, later_JBNLHd, preferred_element_type=jnp.float32)
    return dx, dmatrix_HJIL.astype(matrix_HJIL.dtype)


_block_toeplitz.defvjp(lambda x, m: (_block_toeplitz(x, m), (x, m)), _block_toeplitz_backward)


def convolve_window(window_BDW: jax.Array, matrix_HWS: jax.Array) -> jax.Array:
    """The last S outputs of a convolution, from the W = K - 1 + S inputs that they depend on.

    Args:
        window_BDW: inputs, time last, which is how they are kept while decoding.
        matrix_HWS: `toeplitz_matrix(kernel_HK, S, K - 1 + S)`.

    Returns:
        y_BSD, in the dtype of `window_BDW`.
    """
    B, D, W = window_BDW.shape
    H, _, S = matrix_HWS.shape
    window_BHdW, matrix_HWS = window_BDW.reshape(B, H, D // H, W), matrix_HWS.astype(window_BDW.dtype)
    y_BHdS = jnp.einsum("bhdw,hws->bhds", window_BHdW, matrix_HWS, preferred_element_type=jnp.float32)
    return y_BHdS.reshape(B, D, S).swapaxes(1, 2).astype(window_BDW.dtype)


def toeplitz_matrix(kernel_HK: jax.Array, block: int, window: int) -> jax.Array:
    """Banded matrices M[H, I, L] with `y_l = sum_i M[h, i, l] x_i` for the last `block` of `window` inputs.

    M[h, i, l] = k[h, (window - block) + l - i] where that tap exists, else 0. Built by writing one padded row with
    period `window + 1` into rows of length `window`, which shifts it by one per row: no gather, and the gradient of
    the kernel is a reshape and a sum along diagonals. Needs window >= block + K - 1.
    """
    H, K = kernel_HK.shape
    row = jnp.pad(kernel_HK[:, ::-1], ((0, 0), (window - block - K + 1, block + 1)))[:, : window + 1]
    rows = jnp.tile(row, (1, block))[:, : block * window].reshape(H, block, window)
    return rows.transpose(0, 2, 1)
