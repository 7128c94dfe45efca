"""Causal long convolution of byte streams with per-head kernels: `y[t] = sum_i k[i] u[t-i]`, linear, never circular.

Three methods, equal to round-off:

`direct`    a loop over taps; the reference for tests.
`fft`       rfft/irfft of the zero-padded window; float32 always. Round-off mixes all positions, so its outputs depend
            on later inputs by about 1e-7 of their size.
`toeplitz`  blocks of outputs as matmuls with a banded Toeplitz matrix. Exactly causal, fast on matmul hardware, in
            bfloat16 too.

Shapes: B batch, T time, D = H * d channels, H conv heads, K taps, F frequency bins; N blocks of L inputs (i) or
outputs (l), J blocks that a block of outputs depends on, its own included.
Channel j of head h is channel `h * d + j` and uses kernel h. No method treats a NaN as zero, so a NaN reaches every
later output in reach; inside its own Toeplitz block it reaches earlier ones too (0 * NaN), never earlier blocks.

`fft` and `toeplitz` have gradients of their own, to any order in reverse mode; for forward mode take `direct`.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from fftlm_jax.runtime.platform import multiply, traced_platform


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
    return _transform_back(U_BHdF * k_HF[None, :, None], n, T), (U_BHdF, k_HF, kernel_HK)


def _backward(saved: tuple[jax.Array, ...], dy_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Correlations by the same real transforms: JAX's own rule for rfft has been a full complex FFT before."""
    U_BHdF, k_HF, kernel_HK = saved
    T, (H, K) = dy_BTD.shape[1], kernel_HK.shape
    n = fast_fft_length(T + K - 1)
    Y_BHdF = _transform(dy_BTD, H, n)
    du_BTD = _transform_back(Y_BHdF * k_HF.conj()[None, :, None], n, T)
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


def causal_convolve(
    u_BTD: jax.Array,
    kernel_HK: jax.Array,
    method: ConvolutionMethod = "auto",
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Convolves every channel with its head's kernel, strictly causally.

    Args:
        u_BTD: inputs, float32 or bfloat16.
        kernel_HK: taps, `kernel_HK[:, i]` multiplying the input i steps ago. H must divide D. K may exceed T.
        method: `direct`, `fft`, `toeplitz`, or `auto` (see `choose_method`).
        dtype: of the products of `toeplitz`, float32 or bfloat16; that of `u_BTD` by default.

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
    dtype = u_BTD.dtype if dtype is None else dtype
    if method == "auto":
        method = choose_method(K, T, traced_platform(), dtype)
    if method == "direct":
        return _direct(u_BTD, kernel_HK)
    if method == "fft":
        return fft_convolve(u_BTD, kernel_HK)
    if method == "toeplitz":
        return toeplitz_convolve(u_BTD.astype(dtype), kernel_HK).astype(u_BTD.dtype)
    raise ValueError(f"convolution method {method!r} is none of {', '.join(CONVOLUTION_METHODS)}")


def choose_method(
    kernel_len: int, seq_len: int, platform: str, dtype: jax.typing.DTypeLike = jnp.float32
) -> ConvolutionMethod:
    """The fixed rule behind `auto`, read off `experiments/bench.py`; never timed at start-up, so runs repeat.

    Toeplitz up to 32 taps on CPU (at 64 the two are equally fast, or the FFT is by 7 %), and up to 1024 on
    accelerators, which multiply matrices far faster than they transform (by arithmetic, unmeasured). In bfloat16 on
    CPU, up to 128 taps: a training step is as fast (within 4 %), and the round-off that an FFT carries from later
    inputs to earlier outputs, 1e-7 of their size, could there tip a rounding of 4e-3.
    """
    on_cpu = 128 if dtype == jnp.bfloat16 else 32
    return "toeplitz" if min(kernel_len, seq_len) <= (on_cpu if platform == "cpu" else 1024) else "fft"


def _direct(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    kernel_KD = jnp.repeat(kernel_HK, u_BTD.shape[2] // kernel_HK.shape[0], axis=0).T.astype(jnp.float32)

    def add_tap(carry: tuple[jax.Array, jax.Array], tap_D: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        delayed, y = carry
        return (jnp.pad(delayed[:, :-1], ((0, 0), (1, 0), (0, 0))), y + tap_D[None, None] * delayed), None

    u = u_BTD.astype(jnp.float32)
    (_, y), _ = jax.lax.scan(add_tap, (u, jnp.zeros_like(u)), kernel_KD)
    return y.astype(u_BTD.dtype)


def toeplitz_block_length(seq_len: int, kernel_len: int) -> int:
    """Outputs per Toeplitz block: the taps rounded up to a power of two, within 32..128 and the window."""
    return min(seq_len, max(32, min(128, 1 << (kernel_len - 1).bit_length())))


def toeplitz_convolve(u_BTD: jax.Array, kernel_HK: jax.Array) -> jax.Array:
    """Every channel with its head's kernel, [B, T, D] x [H, K] -> [B, T, D] in the dtype of the inputs; K at most T."""
    B, T, D = u_BTD.shape
    H, K = kernel_HK.shape
    L = toeplitz_block_length(T, K)
    N = -(-T // L)
    J = 1 - (-(K - 1) // L)
    blocks_BNLHd = jnp.pad(u_BTD, ((0, 0), (0, N * L - T), (0, 0))).reshape(B, N, L, H, D // H)
    matrix_HIL = toeplitz_matrix(kernel_HK, L, J * L).astype(u_BTD.dtype)
    # By the blocks' distance j, nearest first: outputs l of a block from the inputs i of the j-th block before it.
    matrix_HJIL = matrix_HIL.reshape(H, J, L, L)[:, ::-1]
    return _block_toeplitz(blocks_BNLHd, matrix_HJIL).reshape(B, N * L, D)[:, :T]


@jax.custom_vjp
def _block_toeplitz(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array) -> jax.Array:
    """y[n, l] = sum_j sum_i matrix[j, i, l] x[n - j, i] for every row, head and channel, in the dtype of x."""
    return _toeplitz_forward(blocks_BNLHd, matrix_HJIL)[0]


def _toeplitz_forward(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Does not call `_block_toeplitz`: JAX 0.10 and 0.12 confuse the residuals of a rule that calls its own function in
    # a scan over layers that is differentiated twice.
    return _across_blocks(blocks_BNLHd, matrix_HJIL, 1), (blocks_BNLHd, matrix_HJIL)


def _toeplitz_backward(saved: tuple[jax.Array, jax.Array], dy_BNLHd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Products in the dtype of the inputs, where JAX's own rule would take float32."""
    blocks_BNLHd, matrix_HJIL = saved
    dx_BNLHd = _across_blocks(dy_BNLHd, matrix_HJIL.swapaxes(2, 3), -1)
    return dx_BNLHd, _matrix_gradient(blocks_BNLHd, dy_BNLHd, matrix_HJIL.shape[1]).astype(matrix_HJIL.dtype)


_block_toeplitz.defvjp(_toeplitz_forward, _toeplitz_backward)


def _one_by_one(dtype: jax.typing.DTypeLike) -> bool:
    """Whether heads follow each other: on CPU in float32, where the arrays of one then fit into the cache."""
    return traced_platform() == "cpu" and dtype != jnp.bfloat16


def _across_blocks(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array, direction: int) -> jax.Array:
    """Blocks times their head's matrices, summed along the blocks, to later ones (direction 1) or earlier ones (-1)."""
    if not _one_by_one(blocks_BNLHd.dtype):
        return _products(blocks_BNLHd, matrix_HJIL, direction).astype(blocks_BNLHd.dtype)

    def replace(h: jax.Array, blocks_BNLHd: jax.Array) -> jax.Array:
        matrix_1JIL = jax.lax.dynamic_slice_in_dim(matrix_HJIL, h, 1)
        y_BNL1d = _products(_head(blocks_BNLHd, h), matrix_1JIL, direction).astype(blocks_BNLHd.dtype)
        return jax.lax.dynamic_update_slice_in_dim(blocks_BNLHd, y_BNL1d, h, 3)

    return jax.lax.fori_loop(0, matrix_HJIL.shape[0], replace, blocks_BNLHd)


def _matrix_gradient(blocks_BNLHd: jax.Array, dy_BNLHd: jax.Array, distances: int) -> jax.Array:
    """m[h, j, i, l] = sum_n x[n, i] dy[n + j, l] over rows and channels too, float32 [H, J, L, L]."""
    if not _one_by_one(blocks_BNLHd.dtype):
        return _outer_products(blocks_BNLHd, dy_BNLHd, distances)
    of_head = lambda h: _outer_products(_head(blocks_BNLHd, h), _head(dy_BNLHd, h), distances)[0]  # noqa: E731
    return jax.lax.map(of_head, jnp.arange(blocks_BNLHd.shape[3]))


def _head(x_BNLHd: jax.Array, h: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x_BNLHd, h, 1, 3)


def _products(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array, direction: int) -> jax.Array:
    """`_across_blocks` of all heads at once, float32: each block times every matrix, then sums along the blocks.

    So no window of inputs is ever put together, which on CPU costs as much as the product, and all copies move runs of
    d channels.
    """
    B, N, L, H, d = blocks_BNLHd.shape
    J = matrix_HJIL.shape[1]
    matrix_HXI = matrix_HJIL.swapaxes(2, 3).reshape(H, J * L, L)
    terms_HXY = multiply(matrix_HXI, blocks_BNLHd.transpose(3, 2, 0, 1, 4).reshape(H, L, B * N * d))
    terms_HJLBNd = terms_HXY.astype(jnp.float32).reshape(H, J, L, B, N, d)
    y_HLBNd = terms_HJLBNd[:, 0]
    for j in range(1, min(J, N)):
        here, shift = (slice(None, N - j), (j, 0)) if direction > 0 else (slice(j, None), (0, j))
        y_HLBNd += jnp.pad(terms_HJLBNd[:, j, :, :, here], ((0, 0), (0, 0), (0, 0), shift, (0, 0)))
    return y_HLBNd.transpose(2, 3, 1, 0, 4)


def _outer_products(blocks_BNLHd: jax.Array, dy_BNLHd: jax.Array, distances: int) -> jax.Array:
    """`_matrix_gradient` of all heads at once: one product, the gradients of later blocks side by side."""
    B, N, L, H, d = blocks_BNLHd.shape
    later_JBNLHd = jnp.stack(
        [jnp.pad(dy_BNLHd[:, j:], ((0, 0), (0, min(j, N)), (0, 0), (0, 0), (0, 0))) for j in range(distances)]
    )
    later_HYX = later_JBNLHd.transpose(4, 1, 2, 5, 0, 3).reshape(H, B * N * d, distances * L)
    product_HIX = multiply(blocks_BNLHd.transpose(3, 2, 0, 1, 4).reshape(H, L, B * N * d), later_HYX)
    return product_HIX.astype(jnp.float32).reshape(H, L, distances, L).swapaxes(1, 2)


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
