"""What is trained and what is scored: next-byte and chunk cross-entropy over a batch of windows.

A window holds T + C bytes (C = chunk): T inputs and the bytes after each. Position t predicts byte t + 1 (head 0);
at the boundaries t = C-1, 2C-1, ..., T-1 the whole head predicts bytes t + 1 .. t + C, so over contiguous windows
every byte but the first chunk's is scored exactly once.
Shapes: B batch, T inputs, C chunk, N = T / C boundaries, D width, V byte values.
"""

from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fftlm_jax.config.schema import Config, ObjectiveConfig
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.layers import compute_dtype
from fftlm_jax.parallel import whole
from fftlm_jax.spectral import LowPass

Number = TypeVar("Number", float, jax.Array)


def objective_value(objective: ObjectiveConfig, next_byte: Number, chunk: Number) -> Number:
    """The objective in nats from the mean next-byte and chunk losses (the latter unused by `next_byte`)."""
    return chunk + objective.next_byte_weight * next_byte if objective.has_chunks else next_byte


class Scores(NamedTuple):
    """Cross-entropies in nats and the weights (1 scored, 0 not) they count with."""

    next_byte_BT: jax.Array
    next_byte_weight_BT: jax.Array
    chunk_BNC: jax.Array | None
    chunk_weight_BNC: jax.Array | None


def score(
    graph: nnx.GraphDef,
    params: Params,
    windows_BW: jax.Array,
    low_pass: LowPass,
    *,
    chunk: int,
    with_chunk: bool,
    last_only: bool = False,
    valid_B: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> Scores:
    """Cross-entropy of every scored byte of a batch of windows.

    Args:
        graph: from `model.build`.
        params: parameters, plain nested dict.
        windows_BW: bytes, W = T + chunk.
        low_pass: band limit of the mixers.
        chunk: bytes of a chunk.
        with_chunk: whether the chunk head is evaluated (at boundaries only: at every position it would cost more than
            the blocks).
        last_only: score nothing but the last position (head 0) and the last boundary.
        valid_B: number of bytes of each window that are data, the rest being padding; None means all.
        dropout_key: seeds dropout; None switches it off.

    Returns:
        Scores; bytes in the padding have weight 0.
    """
    chex.assert_rank(windows_BW, 2)
    W = windows_BW.shape[1]
    T = W - chunk
    # Blocks gather their own parameters, layer by layer.
    dtype = compute_dtype(nnx.merge(graph, params).config)
    params = {name: part if name == "blocks" else whole(part, dtype) for name, part in params.items()}
    model = nnx.merge(graph, params)
    hidden_BTD = model(windows_BW[:, :T], low_pass, dropout_key)
    targets = windows_BW.astype(jnp.int32)
    is_data_BW = jnp.ones_like(targets, jnp.float32)
    if valid_B is not None:
        is_data_BW = (jnp.arange(W)[None] < valid_B[:, None]).astype(jnp.float32)

    if last_only:
        hidden_BTD = hidden_BTD[:, -1:]
    first = T - 1 if last_only else 0
    next_byte_BT = optax.softmax_cross_entropy_with_integer_labels(
        model.head.next_byte(hidden_BTD), targets[:, first + 1 : T + 1]
    )
    next_byte_weight_BT = is_data_BW[:, first + 1 : T + 1]
    if not with_chunk:
        return Scores(next_byte_BT, next_byte_weight_BT, None, None)
    boundary = hidden_BTD if last_only else hidden_BTD[:, chunk - 1 :: chunk]
    N = boundary.shape[1]
    start = W - N * chunk
    chunk_BNC = optax.softmax_cross_entropy_with_integer_labels(
        model.head.chunk(boundary), targets[:, start:].reshape(-1, N, chunk)
    )
    return Scores(next_byte_BT, next_byte_weight_BT, chunk_BNC, is_data_BW[:, start:].reshape(-1, N, chunk))


def objective_loss(config: Config, scores: Scores) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The objective in nats, and its (next-byte, chunk) losses; the chunk loss is 0 where it was not scored."""
    next_byte = jnp.mean(scores.next_byte_BT)
    chunk = jnp.zeros(()) if scores.chunk_BNC is None else jnp.mean(scores.chunk_BNC)
    return objective_value(config.objective, next_byte, chunk), (next_byte, chunk)
