"""What context is worth: the same bytes predicted from exactly their last 1, 2, 4, ... bytes.

By position in a window every length of context has other bytes to predict; here all lengths have the same ones, so that
the curve shows context alone. A model without absolute positions takes a window of c bytes for all there is, so it is
run on windows cut to c bytes. A spectral memory takes its pieces from the window's first byte on, as in training: from
fewer bytes than a piece it remembers nothing.
"""

import math

import jax
import numpy as np
import optax
from flax import nnx

from fftlm_jax.checkpoints.saved_run import SavedRun
from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.data import ByteSequence, windows_at
from fftlm_jax.generation import receptive_field
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params


def longest_context(config: ModelConfig) -> int:
    """Bytes that a prediction can depend on: the receptive field, within the window that was trained."""
    return int(min(receptive_field(config), config.seq_len))


def context_lengths(config: ModelConfig) -> list[int]:
    """1, 2, 4, ... and the longest context."""
    longest = longest_context(config)
    return [1 << i for i in range((longest - 1).bit_length())] + [longest]


def spaced_places(size: int, margin: int, count: int) -> np.ndarray:
    """At most `count` places, evenly spaced, of a text of `size` bytes, each with `margin` bytes before it."""
    room = size - margin
    count = min(count, room)
    return margin + np.arange(count) * room // count


def bits_by_context(saved: SavedRun, text: ByteSequence, places_M: np.ndarray, lengths: list[int]) -> np.ndarray:
    """Cross-entropy in bits of the byte at each place given exactly its last c bytes, for each c: [C, M], float64.

    Raises:
        ValueError: under the `signal` method, whose mask of a short window is another filter than any in training.
    """
    if saved.low_pass.method == "signal":
        raise ValueError("the signal method filters whole windows; shorter contexts mean nothing to it")
    graph, _ = build(saved.config.model)
    bytes_at_once = saved.config.eval.batch_size * saved.config.model.seq_len

    @jax.jit
    def nats(params: Params, context_BT: jax.Array, target_B: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        logits_BV = model.head.next_byte(model(context_BT, saved.low_pass)[:, -1])
        return optax.softmax_cross_entropy_with_integer_labels(logits_BV, target_B)

    def bits(length: int) -> np.ndarray:
        # Batches of one shape, so that each length compiles once; the last one repeats its last place.
        count = min(len(places_M), max(1, bytes_at_once // length))
        batches = [places_M[i : i + count] for i in range(0, len(places_M), count)]
        batches = [np.pad(b, (0, count - len(b)), mode="edge") for b in batches]
        windows = (windows_at(text, b - length, length + 1) for b in batches)
        found = [nats(saved.params, w[:, :-1], w[:, -1].astype(np.int32)) for w in windows]
        return np.concatenate(found)[: len(places_M)].astype(np.float64) / math.log(2)

    return np.stack([bits(length) for length in lengths])


def summary(bits_CM: np.ndarray, lengths: list[int]) -> list[dict[str, float | None]]:
    """A row per length: bits per byte, how many more than with all context, and the standard error of that.

    The difference is taken byte by byte, so its error is not that of the bytes' own spread. None for a single byte.
    """
    rows = []
    for length, bits_M, more_M in zip(lengths, bits_CM, bits_CM - bits_CM[-1]):
        error = round(float(more_M.std(ddof=1)) / math.sqrt(more_M.size), 4) if more_M.size > 1 else None
        bpb, more = round(float(bits_M.mean()), 4), round(float(more_M.mean()), 4) + 0.0  # No minus zero.
        rows.append({"context": length, "bpb": bpb, "more": more, "standard_error": error})
    return rows
