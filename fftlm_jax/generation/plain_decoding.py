"""Plain decoding: the model is run over its whole receptive field for every byte.

Exact and simple, at a cost per byte of one full forward pass: the reference that cached decoding is tested against, and
the only way to decode under a `signal` mask, which needs the whole window. The loop over bytes runs inside one jit.
"""

import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.config.traits import MIXERS
from fftlm_jax.generation.sampling import (
    DecodedBytes,
    SamplingConfig,
    draft,
    log_probabilities,
    push,
    remember,
    row_keys,
)
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.layers import VOCABULARY, products_at
from fftlm_jax.spectral import LowPass


def receptive_field(config: ModelConfig) -> float:
    """Bytes that one prediction can depend on. Each layer reaches further back; a memory does so without end."""
    reach = MIXERS[config.mixer].reach(config)
    return 1 + config.n_layers * (reach - 1) if config.memory == "none" else math.inf


class PlainDecoder:
    """Continues prompts byte by byte. Compiles once per (context, number of bytes, sampling); keeps no state."""

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

    def generate(
        self,
        params: Params,
        prompts: Sequence[bytes],
        length: int,
        sampling: SamplingConfig,
        *,
        seed: int = 0,
        mode: str = "byte",
    ) -> list[bytes]:
        """The `length` bytes that follow each prompt; arguments as in `decode.Decoder.stream`."""
        return next(self.stream(params, prompts, length, sampling, seed=seed, mode=mode)).written

    def stream(
        self,
        params: Params,
        prompts: Sequence[bytes],
        length: int,
        sampling: SamplingConfig,
        *,
        seed: int = 0,
        mode: str = "byte",
        rows: Sequence[int] | None = None,
    ) -> Iterator[DecodedBytes]:
        """Writes everything as one block; arguments as in `decode.Decoder.stream`, of which there is one mode only."""
        if mode != "byte":
            raise ValueError(f"plain decoding goes byte by byte, not by {mode!r}")
        keys = row_keys(seed, range(len(prompts)) if rows is None else rows)
        texts = [self._one(params, prompt or b"\n", length, sampling, key) for prompt, key in zip(prompts, keys)]
        yield DecodedBytes(texts, 0, 0)

    def _one(self, params: Params, prompt: bytes, length: int, sampling: SamplingConfig, key: jax.Array) -> bytes:
        known = prompt[-self.context :]
        if self._is_full_window:
            known = known.rjust(self.context, b"\n")
        buffer = np.zeros(self.context + length + self._stride - 1, np.int32)
        buffer[: len(known)] = np.frombuffer(known, np.uint8)
        total = len(known) + length
        recent_R = remember(prompt, sampling.memory)
        filled = self._continue(params, buffer, recent_R, np.int32(len(known)), np.int32(total), key, sampling)
        return np.asarray(filled)[len(known) : total].astype(np.uint8).tobytes()

    @functools.partial(jax.jit, static_argnums=(0, 7))
    def _continue(
        self,
        params: Params,
        buffer: jax.Array,
        recent_R: jax.Array,
        known: jax.Array,
        total: jax.Array,
        key: jax.Array,
        sampling: SamplingConfig,
    ) -> jax.Array:
        model = nnx.merge(self._graph, params)
        nothing_later = jnp.zeros((0, VOCABULARY))

        def one_byte(i: jax.Array, texts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            buffer, recent_R = texts
            start = -(jnp.minimum(self.context - i, 0) // self._stride) * self._stride  # Rounded up.
            context = jax.lax.dynamic_slice(buffer, (start,), (self.context,))
            with products_at(model.config.precision):
                hidden = model(context[None], self._low_pass)[0]
            logits_V = model.head.next_byte(jax.lax.dynamic_index_in_dim(hidden, i - 1 - start, keepdims=False))
            next_V = log_probabilities(logits_V, recent_R, sampling)
            (byte,), _ = draft(key, i - known, next_V, nothing_later, recent_R, sampling)
            return buffer.at[i].set(byte), push(recent_R, byte)

        return jax.lax.fori_loop(known, total, one_byte, (buffer, recent_R))[0]
