"""Held-out bits per byte, by position, by place in the word and by byte of the chunk.

Shapes: B batch, T scored positions of a window, P places in a word, N chunks of a window, C bytes of a chunk.

The source documents say what each cutoff teaches (128 characters, 256 words, 512 spelling). Guessing a word from what
came before it falls on its first byte, spelling on the inner ones.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fftlm_jax.checkpoints.contents import TrainState, averaged_params
from fftlm_jax.config.schema import Config, ObjectiveConfig
from fftlm_jax.data import ByteSequence, EvaluationBatch, evaluation_batches
from fftlm_jax.generation import Decoder, PlainDecoder, decoder_for, sampling_of
from fftlm_jax.model import objective_value, score
from fftlm_jax.model.language_model import Params, evaluation_low_pass
from fftlm_jax.model.layers import products_at
from fftlm_jax.parallel import distribute, is_first_process, one_copy, replicated, round_up_rows, rows, within
from fftlm_jax.spectral import LowPass


class Tally(NamedTuple):
    """Sums of cross-entropies in nats and counts of the bytes they were summed over, float64."""

    next_byte_T: np.ndarray
    next_byte_count_T: np.ndarray
    word_P: np.ndarray  # Of the next bytes, by `WORD_PLACES`.
    word_count_P: np.ndarray
    chunk_NC: np.ndarray | None
    chunk_count_NC: np.ndarray | None
    first_position: int  # Of the window, counted from 1, that the first entry of T stands for.


Evaluate = Callable[[Params, Iterable[EvaluationBatch]], Tally]


def make_evaluate(config: Config, graph: nnx.GraphDef, low_pass: LowPass, mesh: Mesh | None = None) -> Evaluate:
    """Builds the evaluation for one band limit: `evaluate(params, batches) -> Tally`.

    On a mesh, batches (the same in every process, of a size that all devices share equally) are cut along their rows.
    The chunk part is there where the objective trains the whole head. Under the `signal` method only the last position
    of each window is scored, since all others see their future.
    """
    sums = make_sums(config, graph, low_pass, mesh)

    def evaluate(params: Params, batches: Iterable[EvaluationBatch]) -> Tally:
        # Summed on the host in float64: a float32 sum over millions of bytes would lose digits.
        total: list[Any] = [0.0] * (6 if config.objective.has_chunks else 4)
        for batch in batches:
            if mesh is not None:
                batch = distribute(batch, EvaluationBatch(rows(mesh), rows(mesh)))
            with within(mesh):
                found = jax.device_get(sums(params, batch.windows, batch.valid))
            total = [t + f.astype(np.float64) for t, f in zip(total, found, strict=True)]
        first_position = config.model.seq_len if low_pass.method == "signal" else 1
        return Tally(*total, *[None] * (6 - len(total)), first_position)

    return evaluate


def make_sums(config: Config, graph: nnx.GraphDef, low_pass: LowPass, mesh: Mesh | None) -> Callable[..., Any]:
    """Builds the program behind `make_evaluate`: `sums(params, windows_BW, valid_B)`, jitted, gives a batch's sums."""
    last_only = low_pass.method == "signal"  # At every cutoff, or bpb would change its meaning at the last raise.

    @functools.partial(jax.jit, out_shardings=None if mesh is None else replicated(mesh))
    def sums(params: Params, windows_BW: jax.Array, valid_B: jax.Array) -> list[jax.Array]:
        with products_at(config.model.precision):
            scores = score(
                graph,
                params,
                windows_BW,
                low_pass,
                chunk=config.model.chunk,
                with_chunk=config.objective.has_chunks,
                last_only=last_only,
                valid_B=valid_B,
            )
        loss_BT, weight_BT = scores.next_byte_BT * scores.next_byte_weight_BT, scores.next_byte_weight_BT
        found = [jnp.sum(loss_BT, axis=0), jnp.sum(weight_BT, axis=0)]
        last, T = windows_BW.shape[1] - config.model.chunk, loss_BT.shape[1]
        place_BT = word_places(windows_BW[:, last - T : last], windows_BW[:, last - T + 1 : last + 1])
        is_place_PBT = place_BT == jnp.arange(len(WORD_PLACES))[:, None, None]
        found += [jnp.sum(x_BT * is_place_PBT, axis=(1, 2)) for x_BT in (loss_BT, weight_BT)]
        if scores.chunk_BNC is not None:
            chunk = (scores.chunk_BNC * scores.chunk_weight_BNC, scores.chunk_weight_BNC)
            found += [jnp.sum(x, axis=0) for x in chunk]
        return found

    return sums


def summary(tally: Tally, objective: ObjectiveConfig) -> dict[str, float]:
    """`bpb` (bits per byte of head 0), `loss` (the objective, nats) and, with a chunk part, `chunk_bpb`."""
    next_byte = float(tally.next_byte_T.sum() / tally.next_byte_count_T.sum())
    if tally.chunk_NC is None:
        return {"bpb": next_byte / math.log(2), "loss": next_byte}
    chunk = float(tally.chunk_NC.sum() / tally.chunk_count_NC.sum())
    loss = objective_value(objective, next_byte, chunk)
    return {"bpb": next_byte / math.log(2), "loss": loss, "chunk_bpb": chunk / math.log(2)}


def bpb_by_position(tally: Tally) -> np.ndarray:
    """Next-byte bits per byte at each position of the window, [T]; NaN where none was scored."""
    return _bits(tally.next_byte_T, tally.next_byte_count_T)


def bpb_by_range(tally: Tally, ranges: int) -> list[tuple[int, int, float]]:
    """(first, last, bits per byte) over about `ranges` ranges of positions, counted from 1, that grow geometrically.

    A range in which nothing was scored is left out.
    """
    T = len(tally.next_byte_T)
    edges = np.unique(np.geomspace(1, T + 1, ranges + 1).round().astype(int))
    nats, count = (np.add.reduceat(values, edges[:-1] - 1) for values in (tally.next_byte_T, tally.next_byte_count_T))
    before = tally.first_position - 1
    rows = zip(edges + before, edges[1:] + before, _bits(nats, count))
    return [(int(first), int(after) - 1, float(bits)) for first, after, bits in rows if not np.isnan(bits)]


def bpb_by_word_place(tally: Tally) -> dict[str, float]:
    """Next-byte bits per byte of the first bytes of words, of their inner bytes, and of all others; NaN for none."""
    return dict(zip(WORD_PLACES, _bits(tally.word_P, tally.word_count_P).tolist()))


def chunk_bpb_by_offset(tally: Tally) -> np.ndarray:
    """Bits per byte of each byte of a chunk, [C], over all chunks."""
    return _bits(tally.chunk_NC.sum(axis=0), tally.chunk_count_NC.sum(axis=0))


def _bits(nats: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(nats, count * math.log(2), out=np.full(nats.shape, np.nan), where=count > 0)


class HeldOut:
    """Evaluation and sampling of one run, compiled once per band limit that they need.

    On a mesh the scores are the work of all devices. Samples are that of one, which then holds all weights.
    """

    def __init__(self, config: Config, graph: nnx.GraphDef, data: ByteSequence, mesh: Mesh | None = None) -> None:
        self._config = config
        self._mesh = mesh
        self._graph = graph
        self._data = data[: config.eval.max_bytes or None]
        self._compiled: dict[tuple[str, int], tuple[Evaluate, Decoder | PlainDecoder]] = {}

    def scores(self, state: TrainState, cutoff: int) -> dict[str, Any]:
        """Scores of the held-out part (see `evaluation.summary`), rounded to six digits.

        `bpb_by_word_place` gives the first and inner bytes of words apart, `chunk_bpb_by_offset` the bytes of a chunk.
        With `optim.ema_decay`, `ema_...` are those of the weights' average.
        """
        tally = self.tally(state.params, cutoff)
        scores: dict[str, Any] = summary(tally, self._config.objective)
        if state.ema is not None:
            average = summary(
                self.tally(averaged_params(self._config.optim.ema_decay, state.ema), cutoff), self._config.objective
            )
            scores |= {f"ema_{name}": value for name, value in average.items()}
        scores = {name: round(value, 6) for name, value in scores.items()}
        scores["bpb_by_word_place"] = {name: round(value, 4) for name, value in bpb_by_word_place(tally).items()}
        if tally.chunk_NC is not None:
            scores["chunk_bpb_by_offset"] = np.round(chunk_bpb_by_offset(tally), 4).tolist()
        return scores

    def tally(self, params: Params, cutoff: int) -> Tally:
        """Losses of the held-out part, by place."""
        model = self._config.model
        batch_size = round_up_rows(self._config.eval.batch_size, self._mesh)
        batches = evaluation_batches(self._data, model.seq_len, model.chunk, batch_size)
        return self._at(cutoff)[0](params, batches)

    def sample(self, params: Params, cutoff: int) -> bytes:
        """What the model writes after `sample.prompt`, without the prompt."""
        s = self._config.sample
        if not s.bytes:
            return b""
        decoder, prompt, params = (
            self._at(cutoff)[1],
            s.prompt.encode("utf-8", errors="surrogateescape"),
            one_copy(params, self._mesh),
        )
        if not is_first_process():
            return b""  # Nobody would read it.
        return decoder.generate(params, [prompt], s.bytes, sampling_of(s), seed=self._config.seed, mode=s.mode)[0]

    def _at(self, cutoff: int) -> tuple[Evaluate, Decoder | PlainDecoder]:
        low_pass = evaluation_low_pass(self._config, cutoff)
        key = low_pass.mask_key(self._config.model.kernel_len)
        if key not in self._compiled:
            evaluate = make_evaluate(self._config, self._graph, low_pass, self._mesh)
            self._compiled[key] = evaluate, decoder_for(self._config.model, self._graph, low_pass)
        return self._compiled[key]


WORD_PLACES = ("word_first", "word_inner", "outside")


def is_word_byte(byte: jax.Array) -> jax.Array:
    """Letters, digits and underscores of ASCII, and all bytes beyond it: the letters of UTF-8."""
    lower = byte | 32
    letter = (lower >= ord("a")) & (lower <= ord("z"))
    digit = (byte >= ord("0")) & (byte <= ord("9"))
    return letter | digit | (byte == ord("_")) | (byte >= 128)


def word_places(before: jax.Array, byte: jax.Array) -> jax.Array:
    """Index into `WORD_PLACES` of each byte, given the byte before it; any equal shapes, int32."""
    place = jnp.where(is_word_byte(before), 1, 0)
    return jnp.where(is_word_byte(byte), place, 2).astype(jnp.int32)
