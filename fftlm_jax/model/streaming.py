"""The model a block of bytes at a time, for decoding: what it must remember of the past, and nothing else.

    weights = lay_out(config, graph, params, low_pass)    once
    stream = Stream(config, graph, weights, block=S)       inside jit, outside its loop
    hidden_BSD, trail = stream.extend(state, bytes_BS)     the hidden states that training's forward pass gives there
    state = stream.keep(trail, count_B)                    as if each row had ended after count_B of the S bytes

One function serves prompts (S = 128, say), single bytes and chunks; from the empty state it is the training forward
pass. `keep` lets rows of a batch take in different numbers of bytes, which serves prompts of different lengths and
drafts of which only the first few bytes are accepted.

The past of a layer is its last K - 1 inputs (convolution) or the last seq_len - 1 keys and values (attention): neither
grows with the text. A text longer than the training window slides through it. For convolutions that changes nothing,
since they never see further back; attention sees a window that slides in every layer; a memory goes on averaging.
Shapes: B batch, S new bytes, D width, H conv heads, K taps, V byte values, C bytes of a chunk.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.model.language_model import LanguageModel, Params
from fftlm_jax.model.layers import (
    VOCABULARY,
    Projection,
    activation_dtype,
    column_product,
    compute_dtype,
    products_at,
    rounded,
)
from fftlm_jax.model.spectral_memory import MemoryPast, MemoryWindow, past_of
from fftlm_jax.runtime.platform import traced_platform
from fftlm_jax.spectral import LowPass


class StreamWeights(NamedTuple):
    """A model's weights as decoding reads them: one tree per layer, kernels as taps, heads as flat matrices."""

    blocks: tuple[Params, ...]
    kernels: tuple[jax.Array | None, ...]  # Taps [H, K] under the band limit; None for attention.
    next_byte_VD: jax.Array
    chunk_XD: jax.Array  # X = C V, byte after byte.
    rest: Params


class StreamState(NamedTuple):
    """What the model remembers after some bytes."""

    pasts: tuple[Any, ...]  # Of each layer's mixer, time last.
    memory: MemoryPast | None
    hidden_BD: jax.Array  # At the last byte; 0 before the first.


class Trail(NamedTuple):
    """What is known after a block, enough to go back to any of its bytes."""

    windows: tuple[Any, ...]  # The past and the block together, per layer.
    memory: MemoryWindow | None
    hidden_BTD: jax.Array  # Before the block, and at each of its bytes: T = 1 + S.


def lay_out(config: ModelConfig, graph: nnx.GraphDef, params: Params, low_pass: LowPass) -> StreamWeights:
    """Lays weights out for decoding; costs one copy of them.

    Raises:
        ValueError: if the band limit masks signals, which needs the whole window.
    """
    if low_pass.method == "signal" and not low_pass.is_full:
        raise ValueError("a signal mask sees the whole window and cannot be decoded from a state")
    blocks, kernels, next_byte_VD, chunk_XD = _lay_out(config, graph, params, low_pass)
    return StreamWeights(blocks, kernels, next_byte_VD, chunk_XD, {k: v for k, v in params.items() if k != "blocks"})


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _lay_out(config: ModelConfig, graph: nnx.GraphDef, params: Params, low_pass: LowPass) -> tuple[Any, ...]:
    dtype = compute_dtype(config)
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(config.n_layers)]
    kernels = tuple(_model(graph, params, layer).blocks.mixer.kernels(low_pass) for layer in layers)
    chunk_XD = rounded(params["head"]["kernel"].transpose(0, 2, 1).reshape(-1, config.d_model), dtype)

    def matrix(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":
            return leaf
        return rounded(leaf.T if _by_columns() else leaf, dtype)

    blocks = tuple(jax.tree.map_with_path(matrix, layer) for layer in layers)
    return blocks, kernels, chunk_XD[:VOCABULARY], chunk_XD


class Stream:
    """A model that reads blocks of S bytes. Built inside jit, outside the loop, from weights of `lay_out`."""

    def __init__(self, config: ModelConfig, graph: nnx.GraphDef, weights: StreamWeights, block: int) -> None:
        models = [_model(graph, weights.rest, layer) for layer in weights.blocks]
        self._model, self._blocks = models[0], [model.blocks for model in models]
        self._weights = weights
        self._dtype, self._precision = activation_dtype(config), config.precision
        self._block = block
        self._prepared = [b.mixer.at_width(k, block) for b, k in zip(self._blocks, weights.kernels, strict=True)]
        for layer in self._blocks if _by_columns() else ():
            for _, module in nnx.iter_modules(layer):
                if isinstance(module, Projection):
                    module.by_columns = True

    def empty(self, batch: int) -> StreamState:
        """The state before the first byte."""
        pasts = [b.mixer.empty_past(batch, k) for b, k in zip(self._blocks, self._weights.kernels, strict=True)]
        memory = self._memory.empty_past(batch) if self._memory else None
        return StreamState(tuple(pasts), memory, jnp.zeros((batch, self._weights.chunk_XD.shape[1]), self._dtype))

    def extend(self, state: StreamState, bytes_BS: jax.Array) -> tuple[jax.Array, Trail]:
        """Hidden states at S bytes after a state, and what `keep` needs to go on from any of them."""
        with products_at(self._precision):
            return self._extend(state, bytes_BS)

    def _extend(self, state: StreamState, bytes_BS: jax.Array) -> tuple[jax.Array, Trail]:
        x_BSD = self._model.embed(bytes_BS.astype(jnp.int32)).astype(self._dtype)
        windows = []
        for block, past, prepared in zip(self._blocks, state.pasts, self._prepared, strict=True):
            x_BSD, window = block.extend(past, x_BSD, prepared)
            windows.append(window)
        hidden_BSD, memory = self._model.final_norm(x_BSD).astype(self._dtype), None
        if self._memory:
            read_BSD, memory = self._memory.extend(state.memory, bytes_BS)
            hidden_BSD = hidden_BSD + read_BSD.astype(self._dtype)
        hidden_BTD = jnp.concatenate([state.hidden_BD[:, None], hidden_BSD], axis=1)
        return hidden_BSD, Trail(tuple(windows), memory, hidden_BTD)

    def keep(self, trail: Trail, count_B: jax.Array | None = None) -> StreamState:
        """The state after the first `count_B` (0 to S) bytes of the block in each row; None keeps them all.

        With 0 the state is the old one, bit for bit.
        """
        whole = count_B is None
        batch = trail.hidden_BTD.shape[0]
        count_B = jnp.full(batch, self._block, jnp.int32) if whole else count_B
        pasts = jax.tree.map(
            lambda window: window[..., self._block :] if whole else _cut(window, count_B, self._block), trail.windows
        )
        memory = past_of(trail.memory, count_B, self._memory.piece) if self._memory else None
        hidden_BD = trail.hidden_BTD[:, -1] if whole else trail.hidden_BTD[jnp.arange(batch), count_B]
        return StreamState(pasts, memory, hidden_BD)

    def next_byte(self, hidden: jax.Array) -> jax.Array:
        """Logits of the byte after each hidden state: [..., D] -> [..., V], float32."""
        return self._logits(hidden, self._weights.next_byte_VD)

    def chunk(self, hidden: jax.Array) -> jax.Array:
        """Logits of the C bytes after each hidden state: [..., D] -> [..., C, V], float32."""
        return self._logits(hidden, self._weights.chunk_XD).reshape(*hidden.shape[:-1], -1, VOCABULARY)

    def _logits(self, hidden: jax.Array, matrix_ED: jax.Array) -> jax.Array:
        flat_ND = rounded(hidden.reshape(-1, hidden.shape[-1]), compute_dtype(self._model.config))
        with products_at(self._precision):
            logits_NE = column_product(flat_ND, matrix_ED)
        return logits_NE.reshape(*hidden.shape[:-1], -1)

    @property
    def _memory(self) -> Any:
        return self._model.memory if self._model.config.memory != "none" else None


def _cut(window: jax.Array, count_B: jax.Array, block: int) -> jax.Array:
    """Cuts out of each row of a window [B, ..., W + S] the W steps of time that end with the `count_B`-th new one."""
    length = window.shape[-1] - block
    return jax.vmap(lambda row, n: jax.lax.dynamic_slice_in_dim(row, n, length, axis=-1))(window, count_B)


def _model(graph: nnx.GraphDef, params: Params, layer: Params) -> LanguageModel:
    """The model with a single layer's block in place of the stack."""
    return nnx.merge(graph, {**params, "blocks": layer})


def _by_columns() -> bool:
    return traced_platform() == "cpu"
