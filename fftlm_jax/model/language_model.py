"""The language model: byte embedding, residual blocks, a final norm, perhaps a spectral memory, and the byte head.

One block: a mixer of time and a feed-forward layer, both pre-norm and residual.

    x += mixer(RMSNorm(x));  z = RMSNorm(x);  x += W_down gelu_tanh(W_up z)

Everything but the mixer is position-wise, so the model is causal exactly when its mixer is.
Shapes: B batch, T time, D width.

NNX classes describe the model; `build` splits it once into a static graph definition and a plain nested dict of
arrays, and only that dict travels through jit, checkpoints and optimizers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.config.schema import Config, ModelConfig
from fftlm_jax.config.traits import MIXERS
from fftlm_jax.model.layers import VOCABULARY, ByteHead, Projection, activation_dtype, compute_dtype
from fftlm_jax.model.mixers import MIXER_MODULES
from fftlm_jax.model.spectral_memory import SpectralMemory
from fftlm_jax.parallel import regathering, whole
from fftlm_jax.runtime.jax_settings import random_key
from fftlm_jax.runtime.platform import traced_platform
from fftlm_jax.spectral import LowPass


class FeedForward(nnx.Module):
    """Position-wise two-layer network with the tanh form of GELU (2.5 times faster on CPU than the erf form)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        D, dtype = config.d_model, compute_dtype(config)
        hidden = round(D * config.ffn_mult)
        self.w_up = Projection(D, hidden, 1.0, dtype, rngs)
        self.w_down = Projection(hidden, D, (2 * config.n_layers) ** -0.5, dtype, rngs)

    def __call__(self, z_BTD: jax.Array) -> jax.Array:
        return self.w_down(jax.nn.gelu(self.w_up(z_BTD), approximate=True))


class ResidualBlock(nnx.Module):
    """Mixer and feed-forward layer around a residual stream; dropout on both branches."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.mixer_norm = nnx.RMSNorm(config.d_model, dtype=jnp.float32, rngs=rngs)
        self.mixer = MIXER_MODULES[config.mixer](config, rngs)
        self.mlp_norm = nnx.RMSNorm(config.d_model, dtype=jnp.float32, rngs=rngs)
        self.mlp = FeedForward(config, rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x_BTD: jax.Array, low_pass: LowPass, key: jax.Array | None) -> jax.Array:
        """Applies the block. `key` seeds dropout; None switches it off."""
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = x_BTD + self._drop(self.mixer(self.mixer_norm(x_BTD).astype(x_BTD.dtype), low_pass), keys[0])
        return x_BTD + self._drop(self.mlp(self.mlp_norm(x_BTD).astype(x_BTD.dtype)), keys[1])

    def extend(self, past: Any, x_BSD: jax.Array, prepared: Any) -> tuple[jax.Array, Any]:
        """The block, without dropout, at the positions that follow a past of its mixer; also the mixer's new window."""
        mixed_BSD, window = self.mixer.extend(past, self.mixer_norm(x_BSD).astype(x_BSD.dtype), prepared)
        x_BSD = x_BSD + mixed_BSD
        return x_BSD + self.mlp(self.mlp_norm(x_BSD).astype(x_BSD.dtype)), window

    def _drop(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return self.dropout(x, deterministic=key is None, rngs=key)


Params = dict[str, Any]


class LanguageModel(nnx.Module):
    """Strictly causal byte language model.

    Parameters of the blocks are stacked along a leading layer axis (one name per kind of matrix, batched optimizers)
    but initialised layer by layer.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = nnx.Embed(
            VOCABULARY, config.d_model, embedding_init=nnx.initializers.normal(stddev=1.0), rngs=rngs
        )
        self.blocks = _stack_of_blocks(config, rngs)
        self.final_norm = nnx.RMSNorm(config.d_model, dtype=jnp.float32, rngs=rngs)
        if config.memory != "none":
            self.memory = SpectralMemory(config, rngs)
        self.head = ByteHead(config, rngs)

    def __call__(self, bytes_BT: jax.Array, low_pass: LowPass, dropout_key: jax.Array | None = None) -> jax.Array:
        """The hidden states that the head reads.

        Args:
            bytes_BT: input bytes, any integer dtype. Any T, shorter or longer than the training window.
            low_pass: the band limit of the mixers.
            dropout_key: seeds dropout; None (evaluation) switches it off.

        Returns:
            hidden_BTD, see `activation_dtype`; state t depends on bytes 0..t only.
        """
        dtype = activation_dtype(self.config)
        x_BTD = self.embed(bytes_BT.astype(jnp.int32)).astype(dtype)
        graph, layers = nnx.split(self.blocks)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.n_layers)

        def layer(x: jax.Array, inputs: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
            params, key = inputs
            return nnx.merge(graph, whole(params, compute_dtype(self.config)))(x, low_pass, key), None

        remat = self.config.remat == "blocks"
        layer = jax.checkpoint(layer) if remat else regathering(layer)
        # Unrolled on CPU, where a rolled loop's backward pass takes twice as long; rolled where compile time matters,
        # and where blocks are to be computed again: unrolled, XLA's CPU backend would find both and keep the first.
        unroll = self.config.n_layers if traced_platform() == "cpu" and not remat else 1
        x_BTD, _ = jax.lax.scan(layer, x_BTD, (layers, keys), unroll=unroll)
        hidden_BTD = self.final_norm(x_BTD).astype(dtype)
        return hidden_BTD if self.config.memory == "none" else hidden_BTD + self.memory(bytes_BT).astype(dtype)


def build(config: ModelConfig) -> tuple[nnx.GraphDef, Params]:
    """Static graph definition and the abstract (shape, dtype) parameter tree of a model, without allocating it."""
    graph, params = _traced(config, traced_platform())
    return graph, jax.tree.map(lambda leaf: leaf, params)  # A tree of the caller's own, which may be changed.


@functools.lru_cache(maxsize=32)  # Tracing takes 40 ms, and a run asks several times.
def _traced(config: ModelConfig, platform: str) -> tuple[nnx.GraphDef, Params]:
    del platform  # By which the type of products may differ, which the graph holds.
    graph, state = nnx.split(nnx.eval_shape(lambda: LanguageModel(config, nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


def init_params(config: ModelConfig, seed: int, shardings: Any = None) -> Params:
    """Freshly initialised parameters as a plain nested dict of float32 arrays, a pure function of the seed.

    With `shardings` (a tree like it), every device makes its own part, and no device ever holds the whole.
    """
    if shardings is None:
        return _initialise(config, random_key(seed))
    return jax.jit(lambda: _initialise(config, random_key(seed)), out_shardings=shardings)()


@functools.partial(jax.jit, static_argnums=0)
def _initialise(config: ModelConfig, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.split(LanguageModel(config, nnx.Rngs(key)))[1])


def _stack_of_blocks(config: ModelConfig, rngs: nnx.Rngs) -> ResidualBlock:
    @nnx.split_rngs(splits=config.n_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def blocks(rngs: nnx.Rngs) -> ResidualBlock:
        return ResidualBlock(config, rngs)

    return blocks(rngs)


def low_pass_at(config: Config, cutoff: int) -> LowPass:
    """The band limit of the model at a cutoff in bins."""
    bins = freq_bins(config.model.seq_len)
    return LowPass(cutoff, bins, config.curriculum.method, config.curriculum.transition_bins)


def evaluation_low_pass(config: Config, cutoff: int) -> LowPass:
    """The band limit for evaluation and decoding.

    None is needed where masked coefficients are 0 already: one compilation then serves every cutoff.
    """
    return low_pass_at(config, freq_bins(config.model.seq_len) if masks_parameters(config) else cutoff)


def masks_parameters(config: Config) -> bool:
    """Whether the cutoff acts on parameters themselves, which are 0 above it, and not on what is made of them."""
    return config.curriculum.method == "cosine" and MIXERS[config.model.mixer].masks_parameters(config.model)
