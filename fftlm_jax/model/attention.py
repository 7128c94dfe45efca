"""The attention mixer: causal multi-head self-attention with rotary positions, the baseline of the convolutions.

Shapes: B batch, T time, D width, H heads, E = D / H head width; while decoding, S new positions, W of
them and their past.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fftlm_jax.config import ModelConfig
from fftlm_jax.model.layers import linear, project
from fftlm_jax.spectral import LowPass

_ROTARY_BASE = 10000.0  # Wavelengths from 2 pi to 2 pi * 10000 positions, as in the paper.


class Cache(NamedTuple):
    """Keys, not yet rotated, and values of the last positions, time last; `real_BW` is False before the first byte."""

    keys_BHEW: jax.Array
    values_BHEW: jax.Array
    real_BW: jax.Array


class AttentionMixer(nnx.Module):
    """Causal self-attention of the same width as the convolution mixer, with four matrices where that has three.

    Position enters by rotation of queries and keys only (Su et al., "RoFormer", arXiv 2104.09864), so attention, like
    a convolution, depends on distances and not on absolute places.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, dtype = config.d_model, jnp.dtype(config.dtype)
        self.heads = config.attention_heads
        self.seq_len = config.seq_len
        self.w_q = linear(D, D, 1.0, dtype, rngs)
        self.w_k = linear(D, D, 1.0, dtype, rngs)
        self.w_v = linear(D, D, 1.0, dtype, rngs)
        self.w_o = linear(D, D, (2 * config.n_layers) ** -0.5, dtype, rngs)

    def __call__(self, z_BTD: jax.Array, low_pass: LowPass) -> jax.Array:
        """Applies attention. There are no kernels for `low_pass` to limit; the config refuses a curriculum."""
        del low_pass
        q, k, v = self._heads(z_BTD)
        y_BTHE = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return project(self.w_o, y_BTHE.reshape(z_BTD.shape))

    def kernels(self, low_pass: LowPass) -> None:
        """There are none."""

    @staticmethod
    def at_width(kernels: None, block: int) -> None:
        """Nothing to prepare for blocks of a given length."""

    def empty_past(self, batch: int, kernels: None) -> Cache:
        """Room for as many positions as a byte of a training window has before it, at most."""
        D, W = self.w_q.in_features, self.seq_len - 1
        nothing = jnp.zeros((batch, self.heads, D // self.heads, W), self.w_q.dtype)
        return Cache(nothing, nothing, jnp.zeros((batch, W), bool))

    def extend(self, past: Cache, z_BSD: jax.Array, prepared: None) -> tuple[jax.Array, Cache]:
        """The mixer at the S positions that follow a past; also the past and they as one window.

        Each position sees itself and the `seq_len - 1` before it: within a training window all it would see there,
        later a window that slides. Rotations count from the oldest slot, so no angle grows with the text.
        """
        S = z_BSD.shape[1]
        q_BSHE, k_BSHE, v_BSHE = self._heads(z_BSD)
        keys, values = (
            jnp.concatenate([old, new.transpose(0, 2, 3, 1)], axis=-1)
            for old, new in ((past.keys_BHEW, k_BSHE), (past.values_BHEW, v_BSHE))
        )
        window = Cache(keys, values, jnp.pad(past.real_BW, ((0, 0), (0, S)), constant_values=True))
        W, E = keys.shape[-1], keys.shape[-2]
        cos_WE, sin_WE = _rotary_table(W, E)
        turned_BHEW = _turn(keys, cos_WE.T, sin_WE.T, axis=-2)
        q_BSHE = _turn(q_BSHE, cos_WE[-S:, None], sin_WE[-S:, None], axis=-1)
        logits_BHSW = jnp.einsum("bshe,bhew->bhsw", q_BSHE, turned_BHEW, preferred_element_type=jnp.float32) * E**-0.5
        lag_SW = np.arange(W - S, W)[:, None] - np.arange(W)
        is_seen = window.real_BW[:, None, None] & ((lag_SW >= 0) & (lag_SW < self.seq_len))
        weights_BHSW = jax.nn.softmax(jnp.where(is_seen, logits_BHSW, -jnp.inf)).astype(values.dtype)
        y_BSHE = jnp.einsum("bhsw,bhew->bshe", weights_BHSW, values)
        return project(self.w_o, y_BSHE.reshape(z_BSD.shape)), window

    def _heads(self, z_BTD: jax.Array) -> tuple[jax.Array, ...]:
        B, T, _ = z_BTD.shape
        return tuple(project(w, z_BTD).reshape(B, T, self.heads, -1) for w in (self.w_q, self.w_k, self.w_v))


def rotate(x_BTHE: jax.Array) -> jax.Array:
    """Rotary embedding: pairs (i, i + E/2) of a head turn by `t / base^(2 i / E)` radians at position t, in float32."""
    cos_TE, sin_TE = _rotary_table(x_BTHE.shape[1], x_BTHE.shape[-1])
    return _turn(x_BTHE, cos_TE[:, None], sin_TE[:, None], axis=-1)


def _rotary_table(length: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotations at positions 0 to length - 1, float32 [T, E / 2]."""
    angle = np.arange(length)[:, None] / _ROTARY_BASE ** (np.arange(0, width, 2) / width)
    return jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)


def _turn(x: jax.Array, cos: jax.Array, sin: jax.Array, axis: int) -> jax.Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=axis)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=axis).astype(x.dtype)
