"""The attention mixer: causal multi-head self-attention with rotary positions, the baseline of the convolutions.

Shapes: B batch, T time, D width, H heads, E = D / H head width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fftlm_jax.config import ModelConfig
from fftlm_jax.model.layers import linear, project
from fftlm_jax.spectral import LowPass

_ROTARY_BASE = 10000.0  # Wavelengths from 2 pi to 2 pi * 10000 positions, as in the paper.


class AttentionMixer(nnx.Module):
    """Causal self-attention of the same width as the convolution mixer, with four matrices where that has three.

    Position enters by rotation of queries and keys only (Su et al., "RoFormer", arXiv 2104.09864), so attention, like
    a convolution, depends on distances and not on absolute places.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, dtype = config.d_model, jnp.dtype(config.dtype)
        self.heads = config.attention_heads
        self.w_q = linear(D, D, 1.0, dtype, rngs)
        self.w_k = linear(D, D, 1.0, dtype, rngs)
        self.w_v = linear(D, D, 1.0, dtype, rngs)
        self.w_o = linear(D, D, (2 * config.n_layers) ** -0.5, dtype, rngs)

    def __call__(self, z_BTD: jax.Array, low_pass: LowPass) -> jax.Array:
        """Applies attention. There are no kernels for `low_pass` to limit; the config refuses a curriculum."""
        del low_pass
        B, T, D = z_BTD.shape
        q, k, v = (project(w, z_BTD).reshape(B, T, self.heads, -1) for w in (self.w_q, self.w_k, self.w_v))
        y_BTHE = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return project(self.w_o, y_BTHE.reshape(B, T, D))


def rotate(x_BTHE: jax.Array) -> jax.Array:
    """Rotary embedding: pairs (i, i + E/2) of a head turn by `t / base^(2 i / E)` radians at position t, in float32."""
    T, E = x_BTHE.shape[1], x_BTHE.shape[-1]
    angle = np.arange(T)[:, None] / _ROTARY_BASE ** (np.arange(0, E, 2) / E)
    cos, sin = (jnp.asarray(f(angle), jnp.float32)[:, None, :] for f in (np.cos, np.sin))
    first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHE.dtype)
