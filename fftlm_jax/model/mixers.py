"""The ways to mix time: per-head causal long convolutions, and causal attention as their baseline.

A mixer is a module with five methods: `__call__(z_BTD, low_pass)` for training, and for decoding `kernels`, `at_width`,
`empty_past` and `extend`, by which it says what it keeps of the past. `parameter_rules` sorts its parameters into
groups (see `parameters.py`). What configs and counts must know of it without JAX stands in `config/traits.py`;
`register_mixer` adds one from elsewhere.

Shapes: B batch, T time, D width, H heads, E = D / H head width, K taps; while decoding, S new positions, W of them and
their past.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.config.traits import MIXERS, MixerTraits
from fftlm_jax.model.layers import Projection, compute_dtype, rounded
from fftlm_jax.parallel import on_own_rows
from fftlm_jax.spectral import (
    LowPass,
    causal_convolve,
    convolve_window,
    kernel_taps,
    low_pass_signal,
    low_pass_taps,
    taps_to_spectrum,
    toeplitz_matrix,
)

_ROTARY_BASE = 10000.0  # Wavelengths from 2 pi to 2 pi * 10000 positions, as in the paper.


class Cache(NamedTuple):
    """Keys, not yet rotated, and values of the last positions, time last; `real_BW` is False before the first byte."""

    keys_BHEW: jax.Array
    values_BHEW: jax.Array
    real_BW: jax.Array


class AttentionMixer(nnx.Module):
    """Causal multi-head self-attention of the convolution mixer's width, with four matrices where that has three.

    Position enters by rotation of queries and keys only (Su et al., "RoFormer", arXiv 2104.09864), so attention, like
    a convolution, depends on distances and not on absolute places.
    """

    parameter_rules: ClassVar = (("attention", r"w_[qkvo]/kernel"),)

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, dtype = config.d_model, compute_dtype(config)
        self.heads = config.attention_heads
        self.seq_len = config.seq_len
        self.w_q = Projection(D, D, 1.0, dtype, rngs)
        self.w_k = Projection(D, D, 1.0, dtype, rngs)
        self.w_v = Projection(D, D, 1.0, dtype, rngs)
        self.w_o = Projection(D, D, (2 * config.n_layers) ** -0.5, dtype, rngs)

    def __call__(self, z_BTD: jax.Array, low_pass: LowPass) -> jax.Array:
        """Applies attention. There are no kernels for `low_pass` to limit; the config refuses a curriculum."""
        del low_pass
        q, k, v = self._heads(z_BTD)
        y_BTHE = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.w_o(y_BTHE.reshape(z_BTD.shape).astype(z_BTD.dtype))

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
        turned_BHEW = _turn(keys, cos_WE.T[None, None], sin_WE.T[None, None], axis=-2)
        q_BSHE = _turn(q_BSHE, cos_WE[None, -S:, None], sin_WE[None, -S:, None], axis=-1)
        logits_BHSW = jnp.einsum("bshe,bhew->bhsw", q_BSHE, turned_BHEW, preferred_element_type=jnp.float32) * E**-0.5
        lag_SW = np.arange(W - S, W)[:, None] - np.arange(W)
        is_seen = window.real_BW[:, None, None] & ((lag_SW >= 0) & (lag_SW < self.seq_len))
        weights_BHSW = jax.nn.softmax(jnp.where(is_seen, logits_BHSW, -jnp.inf)).astype(values.dtype)
        y_BSHE = jnp.einsum("bhsw,bhew->bshe", weights_BHSW, values)
        return self.w_o(y_BSHE.reshape(z_BSD.shape).astype(z_BSD.dtype)), window

    def _heads(self, z_BTD: jax.Array) -> tuple[jax.Array, ...]:
        B, T, _ = z_BTD.shape
        return tuple(w(z_BTD).astype(w.dtype).reshape(B, T, self.heads, -1) for w in (self.w_q, self.w_k, self.w_v))


def rotate(x_BTHE: jax.Array) -> jax.Array:
    """Rotary embedding: pairs (i, i + E/2) of a head turn by `t / base^(2 i / E)` radians at position t, in float32."""
    cos_TE, sin_TE = _rotary_table(x_BTHE.shape[1], x_BTHE.shape[-1])
    return _turn(x_BTHE, cos_TE[None, :, None], sin_TE[None, :, None], axis=-1)


def _rotary_table(length: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotations at positions 0 to length - 1, float32 [T, E / 2]."""
    angle = np.arange(length)[:, None] / _ROTARY_BASE ** (np.arange(0, width, 2) / width)
    return jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)


def _turn(x: jax.Array, cos: jax.Array, sin: jax.Array, axis: int) -> jax.Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=axis)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=axis).astype(x.dtype)


def initial_taps(key: jax.Array, heads: int, kernel_len: int) -> jax.Array:
    """Decaying random kernels [H, K] whose memory grows geometrically from head to head.

    Head h decays with time constant K^((h + 1/2) / H) taps, so that a layer starts with short and long views alike;
    every kernel has unit norm, which keeps the variance of its input.
    """
    time_constant = kernel_len ** ((np.arange(heads) + 0.5) / heads)
    envelope = np.exp(-np.arange(kernel_len) / time_constant[:, None])
    taps = jax.random.normal(key, (heads, kernel_len)) * jnp.asarray(envelope, jnp.float32)
    return taps / jnp.linalg.norm(taps, axis=-1, keepdims=True)


class ConvolutionMixer(nnx.Module):
    """Mixes time by per-head causal convolutions; gated and projected, or plain as in the source documents.

        u = W_in z;  y = causal_convolve(u) * gain;  out = W_out (y * silu(W_gate z))

    The kernels' parameters are their cosine spectra or, with `kernel_basis="taps"`, their taps: the same functions in
    another basis, which an optimizer that scales coordinates walks through differently.
    """

    parameter_rules: ClassVar = (
        ("convolution", "spectrum|taps"),
        ("gain", "gain"),
        ("mixer", r"w_(in|gate|out)/kernel"),
    )

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, dtype = config.d_model, compute_dtype(config)
        self.method = config.conv_method
        self.kernel_basis = config.kernel_basis
        taps = initial_taps(rngs.params(), config.conv_heads, config.kernel_len)
        if config.kernel_basis == "cosine":
            self.spectrum = nnx.Param(taps_to_spectrum(taps))
        else:
            self.taps = nnx.Param(taps)
        self.gain = nnx.Param(jnp.ones((D,)))
        self.dtype = dtype
        self.projections = config.projections
        if config.projections:
            self.w_in = Projection(D, D, 1.0, dtype, rngs)
            self.w_gate = Projection(D, D, 1.0, dtype, rngs)
            self.w_out = Projection(D, D, (2 * config.n_layers) ** -0.5, dtype, rngs)

    def __call__(self, z_BTD: jax.Array, low_pass: LowPass) -> jax.Array:
        taps_HK = self.kernels(low_pass)

        def convolve(u_BTD: jax.Array, taps_HK: jax.Array) -> jax.Array:
            y = causal_convolve(u_BTD, taps_HK, self.method, self.dtype)
            return low_pass_signal(y, low_pass, taps_HK.shape[-1]) if low_pass.method == "signal" else y

        return self._outputs(on_own_rows(convolve, self._inputs(z_BTD), taps_HK), z_BTD)

    def kernels(self, low_pass: LowPass) -> jax.Array:
        """Taps [H, K] under a band limit."""
        if self.kernel_basis == "cosine":
            return kernel_taps(self.spectrum[...], low_pass)
        return low_pass_taps(self.taps[...], low_pass)

    @staticmethod
    def at_width(taps_HK: jax.Array, block: int) -> jax.Array:
        """What `extend` multiplies windows with, for blocks of S positions: [H, K - 1 + S, S]."""
        return toeplitz_matrix(taps_HK, block, taps_HK.shape[-1] - 1 + block)

    def empty_past(self, batch: int, taps_HK: jax.Array) -> jax.Array:
        """The inputs before the first: zeros [B, D, K - 1], as a training window sees them."""
        return rounded(jnp.zeros((batch, self.gain.shape[0], taps_HK.shape[-1] - 1)), self.dtype)

    def extend(self, past_BDW: jax.Array, z_BSD: jax.Array, matrix_HWS: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mixer at the S positions that follow a past; also the past and they as one window [B, D, K - 1 + S]."""
        u_BDS = rounded(self._inputs(z_BSD).swapaxes(1, 2), self.dtype)
        window_BDW = jnp.concatenate([past_BDW, u_BDS], axis=-1)
        y_BSD = convolve_window(window_BDW, rounded(matrix_HWS, self.dtype))
        return self._outputs(rounded(y_BSD, self.dtype).astype(z_BSD.dtype), z_BSD), window_BDW

    def _inputs(self, z_BTD: jax.Array) -> jax.Array:
        return self.w_in(z_BTD) if self.projections else z_BTD

    def _outputs(self, y_BTD: jax.Array, z_BTD: jax.Array) -> jax.Array:
        # In float32, as is then the gradient of the gain, a sum over all positions.
        y_BTD = (y_BTD * self.gain[...]).astype(y_BTD.dtype)
        if not self.projections:
            return y_BTD
        return self.w_out(y_BTD * jax.nn.silu(self.w_gate(z_BTD)))


MIXER_MODULES: dict[str, type[nnx.Module]] = {"attention": AttentionMixer, "convolution": ConvolutionMixer}


def register_mixer(name: str, module: type[nnx.Module], traits: MixerTraits) -> None:
    """Makes a mixer of one's own a value of `model.mixer`; to be called before a config that names it is read.

    Args:
        name: of the mixer.
        module: as the head of this file says, made by `module(config, rngs)` from the section `model` of a config.
        traits: what must be known of it without building it.

    Raises:
        ValueError: if there is one of this name.
    """
    if name in MIXER_MODULES:
        raise ValueError(f"there is a mixer {name!r} already")
    MIXER_MODULES[name], MIXERS[name] = module, traits


def parameter_rules() -> Sequence[tuple[str, str]]:
    """(group, regular expression over the path below a mixer) of all mixers, in the order of their registration.

    A name that several use keeps the group of the first.
    """
    return [rule for module in MIXER_MODULES.values() for rule in module.parameter_rules]
