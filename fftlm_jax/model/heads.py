"""The linear byte head: one slice per byte of a chunk, slice 0 being the next-byte head.

Shapes: C bytes of a chunk, D width, V = 256 byte values.
"""

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
