"""Causal convolution by matmuls: blocks of outputs from blocks of inputs through a banded Toeplitz matrix.

Shapes: B batch, T time, D = H * d channels, H conv heads, K taps, N blocks of L inputs (i) or outputs (l), J blocks
that a block of outputs depends on, its own included.
"""

import jax
import jax.numpy as jnp


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
    return _block_toeplitz(blocks_BNLHd, matrix_HJIL).reshape(B, N * L, D)[:, :T].astype(u_BTD.dtype)


@jax.custom_vjp
def _block_toeplitz(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array) -> jax.Array:
    """y[n, l] = sum_j sum_i matrix[j, i, l] x[n - j, i] for every batch row, head and channel; float32."""
    return _across_blocks(blocks_BNLHd, matrix_HJIL, 1)


def _across_blocks(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array, direction: int) -> jax.Array:
    """Each block times every matrix at once, then sums along the blocks, to later ones (direction 1) or earlier (-1).

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
    dx = _across_blocks(dy_BNLHd, matrix_HJIL.swapaxes(2, 3), -1).astype(blocks_BNLHd.dtype)
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
