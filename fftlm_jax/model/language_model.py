"""Byte embedding, a stack of blocks, a final norm, perhaps a spectral memory, and the byte head.

NNX classes describe the model; `build` splits it once into a static graph definition and a plain nested dict of
arrays, and only that dict travels through jit, checkpoints and optimizers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fftlm_jax.config import ModelConfig
from fftlm_jax.model.blocks import Block
from fftlm_jax.model.heads import VOCABULARY, ByteHead
from fftlm_jax.model.memory import SpectralMemory
from fftlm_jax.parallel import regathering, whole
from fftlm_jax.spectral import LowPass

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
        self.head = ByteHead(config.d_model, config.chunk, rngs)

    def __call__(self, bytes_BT: jax.Array, low_pass: LowPass, dropout_key: jax.Array | None = None) -> jax.Array:
        """The hidden states that the head reads.

        Args:
            bytes_BT: input bytes, any integer dtype. Any T, shorter or longer than the training window.
            low_pass: the band limit of the mixers.
            dropout_key: seeds dropout; None (evaluation) switches it off.

        Returns:
            hidden_BTD in the compute dtype; state t depends on bytes 0..t only.
        """
        dtype = jnp.dtype(self.config.dtype)
        x_BTD = self.embed(bytes_BT.astype(jnp.int32)).astype(dtype)
        graph, layers = nnx.split(self.blocks)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.n_layers)

        def layer(x: jax.Array, inputs: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
            params, key = inputs
            return nnx.merge(graph, whole(params))(x, low_pass, key), None

        remat = self.config.remat == "blocks"
        layer = jax.checkpoint(layer) if remat else regathering(layer)
        # Unrolled on CPU, where a rolled loop's backward pass takes twice as long; rolled where compile time matters,
        # and where blocks are to be computed again: unrolled, XLA's CPU backend would find both and keep the first.
        unroll = self.config.n_layers if jax.default_backend() == "cpu" and not remat else 1
        x_BTD, _ = jax.lax.scan(layer, x_BTD, (layers, keys), unroll=unroll)
        hidden_BTD = self.final_norm(x_BTD).astype(dtype)
        return hidden_BTD if self.config.memory == "none" else hidden_BTD + self.memory(bytes_BT)


def build(config: ModelConfig) -> tuple[nnx.GraphDef, Params]:
    """Static graph definition and the abstract (shape, dtype) parameter tree of a model, without allocating it."""
    abstract = nnx.eval_shape(lambda: LanguageModel(config, nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    return graph, nnx.to_pure_dict(state)


def init_params(config: ModelConfig, seed: int, shardings: Any = None) -> Params:
    """Freshly initialised parameters as a plain nested dict of float32 arrays, a pure function of the seed.

    With `shardings` (a tree like it), every device makes its own part, and no device ever holds the whole.
    """
    if shardings is None:
        return _initialise(config, jax.random.key(seed))
    return jax.jit(lambda: _initialise(config, jax.random.key(seed)), out_shardings=shardings)()


@functools.partial(jax.jit, static_argnums=0)
def _initialise(config: ModelConfig, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.split(LanguageModel(config, nnx.Rngs(key)))[1])


def _stack_of_blocks(config: ModelConfig, rngs: nnx.Rngs) -> Block:
    @nnx.split_rngs(splits=config.n_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def blocks(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return blocks(rngs)
