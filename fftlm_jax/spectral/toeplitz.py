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
    return _block_toeplitz(blocks_BNLHd, matrix_HJIL).reshape(B, N * L, D)[:, :T]


@jax.custom_vjp
def _block_toeplitz(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array) -> jax.Array:
    """y[n, l] = sum_j sum_i matrix[j, i, l] x[n - j, i] for every row, head and channel, in the dtype of x."""
    return _forward(blocks_BNLHd, matrix_HJIL)[0]


def _forward(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Does not call `_block_toeplitz`: JAX 0.10 and 0.12 confuse the residuals of a rule that calls its own function in
    # a scan over layers that is differentiated twice.
    return _across_blocks(blocks_BNLHd, matrix_HJIL, 1), (blocks_BNLHd, matrix_HJIL)


def _backward(saved: tuple[jax.Array, jax.Array], dy_BNLHd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Products in the dtype of the inputs, where JAX's own rule would take float32."""
    blocks_BNLHd, matrix_HJIL = saved
    dx_BNLHd = _across_blocks(dy_BNLHd, matrix_HJIL.swapaxes(2, 3), -1)
    return dx_BNLHd, _matrix_gradient(blocks_BNLHd, dy_BNLHd, matrix_HJIL.shape[1]).astype(matrix_HJIL.dtype)


_block_toeplitz.defvjp(_forward, _backward)


def _one_by_one() -> bool:
    """Whether heads follow each other: on CPU, where the arrays of one then fit into the cache."""
    return jax.default_backend() == "cpu"


def _across_blocks(blocks_BNLHd: jax.Array, matrix_HJIL: jax.Array, direction: int) -> jax.Array:
    """Blocks times their head's matrices, summed along the blocks, to later ones (direction 1) or earlier ones (-1)."""
    if not _one_by_one():
        return _products(blocks_BNLHd, matrix_HJIL, direction).astype(blocks_BNLHd.dtype)

    def replace(h: jax.Array, blocks_BNLHd: jax.Array) -> jax.Array:
        matrix_1JIL = jax.lax.dynamic_slice_in_dim(matrix_HJIL, h, 1)
        y_BNL1d = _products(_head(blocks_BNLHd, h), matrix_1JIL, direction).astype(blocks_BNLHd.dtype)
        return jax.lax.dynamic_update_slice_in_dim(blocks_BNLHd, y_BNL1d, h, 3)

    return jax.lax.fori_loop(0, matrix_HJIL.shape[0], replace, blocks_BNLHd)


def _matrix_gradient(blocks_BNLHd: jax.Array, dy_BNLHd: jax.Array, distances: int) -> jax.Array:
    """m[h, j, i, l] = sum_n x[n, i] dy[n + j, l] over rows and channels too, float32 [H, J, L, L]."""
    if not _one_by_one():
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
    N, J = blocks_BNLHd.shape[1], matrix_HJIL.shape[1]
    terms_HJLBNd = jnp.einsum("hjil,bnihd->hjlbnd", matrix_HJIL, blocks_BNLHd, preferred_element_type=jnp.float32)
    y_HLBNd = terms_HJLBNd[:, 0]
    for j in range(1, min(J, N)):
        here, shift = (slice(None, N - j), (j, 0)) if direction > 0 else (slice(j, None), (0, j))
        y_HLBNd += jnp.pad(terms_HJLBNd[:, j, :, :, here], ((0, 0), (0, 0), (0, 0), shift, (0, 0)))
    return y_HLBNd.transpose(2, 3, 1, 0, 4)


def _outer_products(blocks_BNLHd: jax.Array, dy_BNLHd: jax.Array, distances: int) -> jax.Array:
    """`_matrix_gradient` of all heads at once: one product, the gradients of later blocks side by side."""
    N = blocks_BNLHd.shape[1]
    later_JBNLHd = jnp.stack(
        [jnp.pad(dy_BNLHd[:, j:], ((0, 0), (0, min(j, N)), (0, 0), (0, 0), (0, 0))) for j in range(distances)]
    )
    return jnp.einsum("bnihd,jbnlhd->hjil", blocks_BNLHd, later_JBNLHd, preferred_element_type=jnp.float32)


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
