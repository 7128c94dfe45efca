"""Plain decoding: the model is run over its whole receptive field for every byte.

Exact and simple, at a cost per byte of one full forward pass. The loop over bytes runs inside one jit.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fftlm_jax.config import ModelConfig
from fftlm_jax.generation.sampling import SamplingConfig, sample_byte
from fftlm_jax.model.language_model import VOCABULARY, Params
from fftlm_jax.spectral import LowPass


def receptive_field(config: ModelConfig) -> float:
    """Bytes that one prediction can depend on: each layer reaches kernel_len - 1 bytes further back.

    Attention and spectral memories reach back without end.
    """
    if config.mixer == "attention" or config.memory != "none":
        return math.inf
    return 1 + config.n_layers * (config.kernel_len - 1)


class Decoder:
    """Continues prompts. Compiles once per (context, number of bytes, sampling) and keeps no state between calls."""

    def __init__(self, config: ModelConfig, graph: nnx.GraphDef, low_pass: LowPass) -> None:
        # A context beyond the receptive field changes nothing; one beyond the training window was never trained.
        # A signal mask spreads every byte over the whole window; only the last position then sees nothing but the past,
        # so its windows are full and end with the newest byte.
        self._is_full_window = low_pass.method == "signal" and not low_pass.is_full
        reach = math.inf if self._is_full_window else receptive_field(config)
        self.context = int(min(reach, config.seq_len))
        # A memory takes in whole pieces, so its window moves by whole pieces, lest all of them change with every byte.
        self._stride = 1 if config.memory == "none" or self._is_full_window else config.memory_piece
        self._graph = graph
        self._low_pass = low_pass

    def generate(self, params: Params, prompt: bytes, length: int, sampling: SamplingConfig, seed: int) -> bytes:
        """Samples `length` bytes after a prompt. An empty prompt starts after a newline, which is not returned."""
        known = (prompt or b"\n")[-self.context :]
        if self._is_full_window:
            known = known.rjust(self.context, b"\n")
        buffer = np.zeros(self.context + length + self._stride - 1, np.int32)
        buffer[: len(known)] = np.frombuffer(known, np.uint8)
        total = len(known) + length
        filled = self._continue(params, buffer, np.int32(len(known)), np.int32(total), jax.random.key(seed), sampling)
        return bytes(np.asarray(filled)[len(known) : total].astype(np.uint8))

    @functools.partial(jax.jit, static_argnums=(0, 6))
    def _continue(
        self,
        params: Params,
        buffer: jax.Array,
        known: jax.Array,
        total: jax.Array,
        key: jax.Array,
        sampling: SamplingConfig,
    ) -> jax.Array:
        model = nnx.merge(self._graph, params)

        def one_byte(i: jax.Array, buffer: jax.Array) -> jax.Array:
            start = -(jnp.minimum(self.context - i, 0) // self._stride) * self._stride  # Rounded up.
            context = jax.lax.dynamic_slice(buffer, (start,), (self.context,))
            hidden = model(context[None], self._low_pass)[0]
            logits = model.head.next_byte(jax.lax.dynamic_index_in_dim(hidden, i - 1 - start, keepdims=False))
            is_known = jnp.arange(self.context) < i - start
            seen = jnp.zeros(VOCABULARY, bool).at[context].max(is_known)
            return buffer.at[i].set(sample_byte(jax.random.fold_in(key, i), logits, seen, sampling))

        return jax.lax.fori_loop(known, total, one_byte, buffer)
