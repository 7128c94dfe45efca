"""The matrices of the model: bias-free projections and the linear byte head.

Shapes: C bytes of a chunk, D width, V = 256 byte values.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY = 256


class ByteHead(nnx.Module):
    """Logits of the next `chunk` bytes from one hidden state, each byte independent of the others given the state.

    A next-byte model is the same thing with one slice, so weights move between objectives.
    """

    def __init__(self, d_model: int, chunk: int, rngs: nnx.Rngs) -> None:
        # Small, so that training starts near the uniform distribution (8 bits per byte).
        init = nnx.initializers.normal(stddev=0.1 * d_model**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (chunk, d_model, VOCABULARY)))

    def next_byte(self, hidden: jax.Array) -> jax.Array:
        """Logits of byte t + 1: [..., D] -> [..., V], float32."""
        return _logits(hidden, self.kernel[0])

    def chunk(self, hidden: jax.Array) -> jax.Array:
        """Logits of bytes t + 1 .. t + C: [..., D] -> [..., C, V], float32."""
        chunk, width, _ = self.kernel.shape
        flat = self.kernel[...].transpose(1, 0, 2).reshape(width, chunk * VOCABULARY)
        return _logits(hidden, flat).reshape(*hidden.shape[:-1], chunk, VOCABULARY)


def _logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    # One flat matmul, for the reason that `blocks.project` gives.
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = jnp.matmul(flat, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return logits.reshape(*hidden.shape[:-1], kernel.shape[-1])


def products_at(precision: str) -> contextlib.AbstractContextManager:
    """The context in which products are traced with `model.precision`: the platform's own at "default"."""
    return contextlib.nullcontext() if precision == "default" else jax.default_matmul_precision(precision)


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
