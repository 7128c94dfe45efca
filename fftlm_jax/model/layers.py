"""Projections: the bias-free matrices that every part of the model is made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def linear(fan_in: int, fan_out: int, scale: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Bias-free projection with weights of variance `scale^2 / fan_in`; float32 master weights."""
    init = nnx.initializers.normal(stddev=scale * fan_in**-0.5)
    return nnx.Linear(fan_in, fan_out, use_bias=False, dtype=dtype, kernel_init=init, rngs=rngs)


def project(layer: nnx.Linear, x_BTD: jax.Array) -> jax.Array:
    """Applies a projection to every position, [B, T, D] -> [B, T, E].

    As one flat matmul: over two leading axes, XLA's CPU backend makes the weight gradient of transposed copies, and
    forward and backward together take twice as long (measured).
    """
    return layer(x_BTD.reshape(-1, x_BTD.shape[-1])).reshape(*x_BTD.shape[:-1], -1)


def column_product(
    x_ND: jax.Array, matrix_ED: jax.Array, *_: Any, preferred_element_type: Any = None, **__: Any
) -> jax.Array:
    """`x @ matrix.T` in the order (matrix @ x.T).T: takes the place of `dot_general` in a projection while decoding.

    For few positions XLA's CPU backend spends its time on repacking the matrix of `x @ w` at every call; in this order,
    which the barriers keep it from undoing, it reads the matrix as it lies (1.5 to 5 times faster at 16 positions, the
    same at one; measured).
    """
    barrier = jax.lax.optimization_barrier
    y_EN = jnp.matmul(matrix_ED, barrier(x_ND.T), preferred_element_type=preferred_element_type)
    return barrier(y_EN).T
