"""Cached decoding: prompts in, bytes out, a block of bytes per call of one jitted loop.

Three modes. `byte` draws one byte per pass of the model. `chunk` draws all C bytes of the chunk head per pass, each
independent of the others. `speculative` drafts them and keeps what the next-byte head lets stand (see `drafts.py`):
the distribution of `byte`, in fewer passes. A pass reads its C bytes at once; the state goes back to the last that
stood. All three draw the next byte from the next-byte head; only where the later ones come from differs.
Shapes: B rows, S bytes of a block of the prompt, C bytes a round, V byte values, R remembered bytes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.generation.plain_decoding import PlainDecoder, receptive_field
from fftlm_jax.generation.sampling import (
    DecodedBytes,
    SamplingConfig,
    after_each,
    draft,
    log_probabilities,
    remember,
    row_keys,
    verify,
)
from fftlm_jax.model.language_model import Params, build
from fftlm_jax.model.streaming import Stream, StreamState, StreamWeights, lay_out
from fftlm_jax.parallel import abstract_at
from fftlm_jax.spectral import LowPass

MODES = ("byte", "chunk", "speculative")

_PROMPT_BLOCK = 128  # Bytes of a prompt per pass, at most.


def decoder_for(config: ModelConfig, graph: nnx.GraphDef, low_pass: LowPass) -> "Decoder | PlainDecoder":
    """The decoder of a model: cached, but where a mask on signals leaves nothing to cache."""
    is_cached = low_pass.method != "signal" or low_pass.is_full
    return (Decoder if is_cached else PlainDecoder)(config, graph, low_pass)


class _Carry(NamedTuple):
    """A batch of texts under way."""

    state: StreamState
    next_BV: jax.Array  # Log-probabilities of the next byte, all rules applied.
    recent_BR: jax.Array
    position_B: jax.Array  # Bytes written, the prompt not counted.


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Continues prompts, a batch at a time. Compiles once per (mode, sampling, batch size, rounded prompt length).

    The prompt may be of any length, and so may the text: the cost of a byte does not grow. A prompt longer than a
    convolution model's receptive field is cut to it, which changes nothing.
    """

    config: ModelConfig
    graph: nnx.GraphDef = dataclasses.field(compare=False, repr=False)  # Follows from the config.
    low_pass: LowPass

    def generate(
        self,
        params: Params,
        prompts: Sequence[bytes],
        length: int,
        sampling: SamplingConfig,
        *,
        seed: int = 0,
        mode: str = "byte",
        rows: Sequence[int] | None = None,
    ) -> list[bytes]:
        """The `length` bytes that follow each prompt; arguments as in `stream`."""
        blocks = self.stream(params, prompts, length, sampling, seed=seed, mode=mode, rows=rows)
        return [b"".join(pieces) for pieces in zip(*(block.written for block in blocks))]

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
        block: int = 64,
    ) -> Iterator[DecodedBytes]:
        """Writes on, a block at a time, until every row has `length` bytes.

        Args:
            params: of the model.
            prompts: one per row; an empty one starts after a newline, which is not returned.
            length: bytes to write per row.
            sampling: how bytes are chosen.
            seed: of all rows.
            mode: one of MODES.
            rows: which row of that seed each is, by default 0, 1, ...: a row's bytes depend on its prompt, the seed and
                this number, and on nothing else of the batch (to round-off).
            block: bytes between two yields.
        """
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
        weights = lay_out(self.config, self.graph, params, self.low_pass)
        key_B = row_keys(seed, range(len(prompts)) if rows is None else rows)
        carry = self._read([prompt or b"\n" for prompt in prompts], weights, sampling)
        missing = [length] * len(prompts)
        while any(missing):
            wanted = np.int32(min(block, max(missing)))
            carry, buffer_BX, count_B, tries = self._write(weights, carry, key_B, wanted, sampling, mode, block)
            buffer_BX, count_B, (drafted, accepted) = jax.device_get((buffer_BX, count_B, tries))
            written = [
                row[: min(count, left)].astype(np.uint8).tobytes()
                for row, count, left in zip(buffer_BX, count_B, missing, strict=True)
            ]
            missing = [left - len(text) for left, text in zip(missing, written, strict=True)]
            yield DecodedBytes(written, int(drafted), int(accepted))

    def trace(
        self, batch: int, sampling: SamplingConfig, mode: str, where: jax.sharding.Sharding, *, block: int = 64
    ) -> jax.stages.Traced:
        """Traces the rounds of decoding that follow the prompts, from shapes alone; nothing is allocated.

        Args:
            batch: rows.
            sampling, mode, block: as in `stream`.
            where: the device that the program is for.
        """
        params = build(self.config)[1]
        weights = jax.eval_shape(lambda p: lay_out(self.config, self.graph, p, self.low_pass), params)
        state = jax.eval_shape(lambda w: self._empty(w, batch), weights)
        recent_BR = jax.ShapeDtypeStruct((batch, sampling.memory), jnp.int32)
        carry = jax.eval_shape(lambda *inputs: self._begin(*inputs, sampling), weights, state, recent_BR)
        key_B, wanted = jax.eval_shape(lambda: (row_keys(0, range(batch)), jnp.zeros((), jnp.int32)))
        inputs = abstract_at((weights, carry, key_B, wanted), where)
        return Decoder._write.trace(self, *inputs, sampling, mode, block)

    def _read(self, prompts: Sequence[bytes], weights: StreamWeights, sampling: SamplingConfig) -> _Carry:
        """The state after the prompts: rows side by side from the first byte on, shorter ones waiting at their ends."""
        recent_BR = jnp.asarray(np.stack([remember(prompt, sampling.memory) for prompt in prompts]))
        reach = receptive_field(self.config)
        heard = [prompt[-int(reach) :] if np.isfinite(reach) else prompt for prompt in prompts]
        longest = max(map(len, heard))
        S = min(_PROMPT_BLOCK, 1 << (longest - 1).bit_length())
        padded = np.zeros((len(heard), -(-longest // S) * S), np.int32)
        for row, prompt in zip(padded, heard, strict=True):
            row[: len(prompt)] = np.frombuffer(prompt, np.uint8)
        lengths = np.asarray([len(prompt) for prompt in heard], np.int32)
        state = self._empty(weights, len(heard))
        for start in range(0, longest, S):
            count_B = np.clip(lengths - start, 0, S)
            state = self._take_in(weights, state, padded[:, start : start + S], count_B)
        return self._begin(weights, state, recent_BR, sampling)

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def _empty(self, weights: StreamWeights, batch: int) -> StreamState:
        return Stream(self.config, self.graph, weights, 1).empty(batch)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def _take_in(
        self, weights: StreamWeights, state: StreamState, bytes_BS: jax.Array, count_B: jax.Array
    ) -> StreamState:
        stream = Stream(self.config, self.graph, weights, bytes_BS.shape[1])
        return stream.keep(stream.extend(state, bytes_BS)[1], count_B)

    @functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=(2, 3))
    def _begin(
        self, weights: StreamWeights, state: StreamState, recent_BR: jax.Array, sampling: SamplingConfig
    ) -> _Carry:
        logits_BV = Stream(self.config, self.graph, weights, 1).next_byte(state.hidden_BD)
        next_BV = jax.vmap(functools.partial(log_probabilities, config=sampling))(logits_BV, recent_BR)
        return _Carry(state, next_BV, recent_BR, jnp.zeros(len(recent_BR), jnp.int32))

    @functools.partial(jax.jit, static_argnums=(0, 5, 6, 7), donate_argnums=2)
    def _write(
        self,
        weights: StreamWeights,
        carry: _Carry,
        key_B: jax.Array,
        wanted: jax.Array,
        sampling: SamplingConfig,
        mode: str,
        block: int,
    ) -> tuple[_Carry, jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
        """Rounds until every row has `wanted` new bytes; rows that are ahead wait if speculative, else none is."""
        C = 1 if mode == "byte" else self.config.chunk
        stream = Stream(self.config, self.graph, weights, C)
        batch = len(key_B)

        def one_round(loop: tuple[Any, ...]) -> tuple[Any, ...]:
            carry, buffer_BX, count_B, drafted, accepted = loop
            is_open_B = count_B < wanted
            before = carry.position_B
            carry, bytes_BC = _round(stream, carry, key_B, is_open_B, sampling, mode, C)
            buffer_BX = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))(
                buffer_BX, bytes_BC, count_B
            )
            stood_B = carry.position_B - before
            if mode == "speculative":
                drafted += (C - 1) * jnp.sum(is_open_B)
                accepted += jnp.sum(stood_B) - jnp.sum(is_open_B)
            return carry, buffer_BX, count_B + stood_B, drafted, accepted

        zero = jnp.zeros((), jnp.int32)
        loop = (carry, jnp.zeros((batch, block + 2 * C), jnp.int32), jnp.zeros(batch, jnp.int32), zero, zero)
        loop = jax.lax.while_loop(lambda loop: jnp.any(loop[2] < wanted), one_round, loop)
        return loop[0], loop[1], loop[2], loop[3:]


def _round(
    stream: Stream,
    carry: _Carry,
    key_B: jax.Array,
    is_open_B: jax.Array,
    sampling: SamplingConfig,
    mode: str,
    C: int,
) -> tuple[_Carry, jax.Array]:
    """Draws C bytes per row and reads them; keeps those that stand. Rows that are not open stay as they are."""
    state, next_BV, recent_BR, position_B = carry
    batch = len(key_B)
    later_BXV = stream.chunk(state.hidden_BD)[:, 1:] if C > 1 else jnp.zeros((batch, 0, next_BV.shape[1]))
    drawn = jax.vmap(functools.partial(draft, config=sampling))(key_B, position_B, next_BV, later_BXV, recent_BR)
    bytes_BC, log_q_BCV = drawn
    hidden_BCD, trail = stream.extend(state, bytes_BC)
    recent_BCR = jax.vmap(after_each)(recent_BR, bytes_BC)
    rules = functools.partial(log_probabilities, config=sampling)
    if mode != "speculative":
        next_BV = jax.vmap(rules)(stream.next_byte(hidden_BCD[:, -1]), recent_BCR[:, -1])
        return _Carry(stream.keep(trail), next_BV, recent_BCR[:, -1], position_B + C), bytes_BC
    log_p_BCV = jax.vmap(jax.vmap(rules))(stream.next_byte(hidden_BCD), recent_BCR)
    count_B, after_BV = jax.vmap(verify)(key_B, position_B, bytes_BC, log_q_BCV, log_p_BCV)
    count_B = jnp.where(is_open_B, count_B, 0)
    recent_BR = jnp.where(is_open_B[:, None], recent_BCR[jnp.arange(batch), count_B - 1], recent_BR)
    next_BV = jnp.where(is_open_B[:, None], after_BV, next_BV)
    return _Carry(stream.keep(trail, count_B), next_BV, recent_BR, position_B + count_B), bytes_BC
