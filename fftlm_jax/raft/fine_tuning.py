"""The training step on weighted rows, and one training of known steps at known rates, resumable from a snapshot.

It is the training step of language modelling (`training/step.py`) with another loss: rows of text of which some bytes
count, such as those of answers but not of their questions, and a learning rate that is given from outside. What is
trained is all weights or the adapters beside them; the loss is the next-byte cross-entropy over the bytes that count.
Shapes: N rows, A micro-batches of B rows, W bytes of a row; byte w is predicted at position w - 1.
"""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from fftlm_jax.checkpoints.contents import TrainState, averaged_params
from fftlm_jax.checkpoints.run_directory import write_bytes
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.layers import products_at
from fftlm_jax.model.lora import LoRA, merge
from fftlm_jax.parallel import distribute, one_copy, replicated, within
from fftlm_jax.parallel import rows as across
from fftlm_jax.raft.journal import array_bytes, arrays_of
from fftlm_jax.runtime.errors import NonFiniteError
from fftlm_jax.spectral import LowPass
from fftlm_jax.training.step import averaging, fresh_state, make_update


class Rows(NamedTuple):
    """Texts of one width, and which of their bytes count."""

    bytes_NW: np.ndarray  # uint8
    weight_NW: np.ndarray  # float32; 1 where a byte is to be predicted, else 0.


class FineTuneMetrics(NamedTuple):
    """Numbers of one step: the loss in nats per byte that counts, before the update; norms before clipping."""

    loss: jax.Array
    grad_norm: jax.Array
    update_ratio: jax.Array  # |update| / |what is trained|
    finite: jax.Array
    halted: jax.Array  # Not finite, and one time too many: nothing changes any more.


class FineTuneStep(NamedTuple):
    """A jitted step, its optimizer, the decay of its average (0 for none), and the devices it runs on.

    `run(base, state, rows, learning_rate, key) -> (state, metrics)` donates `state`; `rows` have a leading axis of
    micro-batches, `key` seeds dropout, whose masks are a function of it and of the step.
    """

    run: Callable[..., tuple[TrainState, FineTuneMetrics]]
    tx: optax.GradientTransformationExtraArgs
    ema_decay: float = 0.0
    mesh: Mesh | None = None


def rows_of(pairs: list[tuple[bytes, bytes]], width: int) -> Rows:
    """Rows of (question, answer) pairs, padded with zero bytes; the bytes of answers count.

    Raises:
        ValueError: if a pair is longer than `width`.
    """
    rows = Rows(np.zeros((len(pairs), width), np.uint8), np.zeros((len(pairs), width), np.float32))
    for text_W, weight_W, (question, answer) in zip(*rows, pairs, strict=True):
        end = len(question) + len(answer)
        if end > width:
            raise ValueError(f"{question + answer!r} has {end} bytes, more than a row of {width}")
        text_W[:end] = np.frombuffer(question + answer, np.uint8)
        weight_W[len(question) : end] = 1
    return rows


def batches(rows: Rows, batch_size: int, epochs: int, seed: tuple[int, ...]) -> Iterator[Rows]:
    """Every row once an epoch, in an order of its own; the last batch of an epoch is filled with rows of weight 0."""
    count = len(rows.bytes_NW)
    for epoch in range(epochs):
        order = np.random.default_rng((*seed, epoch)).permutation(count)
        for first in range(0, count, batch_size):
            chosen = order[first : first + batch_size]
            padding = ((0, batch_size - len(chosen)), (0, 0))
            yield Rows(*(np.pad(array[chosen], padding) for array in rows))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches that `count` rows fill."""
    return -(-count // batch_size)


def answer_loss(graph: nnx.GraphDef, params: Params, low_pass: LowPass, rows: Rows, key: Any = None) -> tuple:
    """Sums over a batch of the cross-entropy (nats) and of the weights of the bytes that count."""
    bytes_BW = jnp.asarray(rows.bytes_NW, jnp.int32)
    model = nnx.merge(graph, params)
    with products_at(model.config.precision):
        logits_BTV = model.head.next_byte(model(bytes_BW[:, :-1], low_pass, key))
    loss_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, bytes_BW[:, 1:])
    weight_BT = rows.weight_NW[:, 1:]
    return jnp.sum(loss_BT * weight_BT), jnp.sum(weight_BT)


def make_fine_tune_step(
    graph: nnx.GraphDef,
    low_pass: LowPass,
    tx: optax.GradientTransformationExtraArgs,
    *,
    lora: LoRA | None,
    model_dropout: bool = False,
    skip_nonfinite: int = 0,
    precision: str = "default",
    ema_decay: float = 0.0,
    mesh: Mesh | None = None,
) -> FineTuneStep:
    """Builds the training step on rows of weighted bytes.

    Args:
        graph: from `model.build`.
        low_pass: band limit of the mixers.
        tx: an optimizer that ends in `scale_by_given_learning_rate`.
        lora: of adapters, which are then what is trained while `base` stays as it is; None trains all weights (`base`
            is then an empty dict).
        model_dropout: whether the model's own dropout is on.
        skip_nonfinite: steps in a row that may be passed over because they are not finite.
        precision: of products, see `model.precision`.
        ema_decay: of an average of what is trained, over steps; 0 for none.
        mesh: devices to cut the rows over.
    """

    def loss_of(trained: Any, params: Any, fixed: tuple, rows: Rows, key: jax.Array) -> tuple[jax.Array, tuple]:
        base, count = fixed
        lora_key, model_key = jax.random.split(key)
        params = trained if lora is None else merge(base, trained, lora, lora_key if lora.dropout else None)
        total, _ = answer_loss(graph, params, low_pass, rows, model_key if model_dropout else None)
        return total / count, ()

    update = make_update(loss_of, tx, skip_nonfinite=skip_nonfinite, precision=precision, average=averaging(ema_decay))

    @functools.partial(jax.jit, donate_argnums=1)
    def step(
        base: Params, state: TrainState, rows: Rows, learning_rate: jax.Array, key: jax.Array
    ) -> tuple[TrainState, FineTuneMetrics]:
        micro_batches = len(rows.weight_NW)
        key = jax.random.fold_in(key, state.step)
        keys = key[None] if micro_batches == 1 else jax.random.split(key, micro_batches)
        # Every byte counts the same, in whichever micro-batch it lies.
        count = jnp.sum(rows.weight_NW[..., 1:]) / micro_batches
        kept, done = update(state, (base, count), rows, keys, learning_rate=learning_rate)
        ratio = optax.tree.norm(done.updates) / optax.tree.norm(state.params)
        return kept, FineTuneMetrics(done.loss, done.grad_norm, ratio, done.finite, kept.halted)

    return FineTuneStep(step, tx, ema_decay, mesh)


def make_answer_loss(graph: nnx.GraphDef, low_pass: LowPass, batch_size: int) -> Callable[[Params, Rows], float]:
    """Builds `loss(params, rows)`: nats per byte that counts, over all rows."""
    sums = jax.jit(lambda params, rows: answer_loss(graph, params, low_pass, rows))

    def loss(params: Params, rows: Rows) -> float:
        totals = np.zeros(2)
        for first in range(0, len(rows.bytes_NW), batch_size):
            part = [array[first : first + batch_size] for array in rows]
            padding = ((0, batch_size - len(part[0])), (0, 0))
            totals += jax.device_get(sums(params, Rows(*(np.pad(array, padding) for array in part))))
        return float(totals[0] / totals[1])

    return loss


_NUMBERS = ("loss", "grad_norm", "update_ratio")


class Fitted(NamedTuple):
    """What a training left: the weights or adapters, and the numbers of its steps, float64 [steps]."""

    trained: Any
    loss: np.ndarray
    grad_norm: np.ndarray
    update_ratio: np.ndarray


def fit(
    step: FineTuneStep,
    base: Params,
    trained: Any,
    batches: Iterator[Rows],
    rates: np.ndarray,
    key: jax.Array,
    *,
    micro_batches: int,
    snapshot: Path,
    every: int,
    pause: Callable[[int], bool],
    say: Callable[[str], None],
) -> Fitted | None:
    """Trains through all batches.

    Args:
        step: of `make_fine_tune_step`.
        base: weights that stay as they are; {} where all are trained.
        trained: what is trained, as it is before the first step.
        batches: one per rate.
        rates: learning rate of every step.
        key: of dropout.
        micro_batches: that the rows of a step are cut into.
        snapshot: where the state is saved; one that is there is gone on from.
        every: steps between snapshots.
        pause: called after every step with the number done; True saves a snapshot and ends early.
        say: told of every step that is passed over.

    Returns:
        What came out (with an average, that), or None if it was paused. The numbers of a step that was passed over are
        NaN.

    Raises:
        NonFiniteError: at a step whose loss, gradient or update is not finite, and which may not be passed over; or
            where all steps were.
    """
    begin_anew = (
        f"nothing of it was saved. Move cycles/{snapshot.parent.name} away, lower raft.lr_base or raft.sft_lr (with "
        "--config.resume.allow=raft) and run the same command: it begins that cycle anew."
    )
    # The step donates its state, and what the caller holds must outlive it.
    trained = jax.tree.map(jnp.array, trained)
    state = fresh_state(trained, step.tx.init(trained), averaging(step.ema_decay))
    numbers = np.zeros((len(rates), len(_NUMBERS)))
    state, done = _restore(snapshot, state, numbers)
    if step.mesh is not None:
        base, state = (distribute(tree, jax.tree.map(lambda _: replicated(step.mesh), tree)) for tree in (base, state))
    for index, (rows, rate) in enumerate(zip(batches, rates, strict=True)):
        if index < done:
            continue
        with within(step.mesh):
            state, metrics = step.run(base, state, _laid_out(rows, micro_batches, step.mesh), np.float32(rate), key)
        *values, finite, halted = jax.device_get(metrics)
        numbers[index] = values if finite else math.nan
        where = f"step {index + 1} of {len(rates)}: loss {values[0]}, gradient norm {values[1]} at LR {rate:.1e}"
        if halted:
            raise NonFiniteError(f"{where}; {begin_anew}")
        if not finite:
            say(f"{where}. Passed over, as train.skip_nonfinite allows.")
        is_paused = pause(index + 1)
        if is_paused or (index + 1) % every == 0:
            _save(snapshot, state, numbers)
        if is_paused:
            return None
    if len(rates) and not np.isfinite(numbers[:, 0]).any():
        raise NonFiniteError(f"all {len(rates)} steps were passed over; {begin_anew}")
    state = one_copy(state, step.mesh)
    has_average = step.ema_decay and state.ema.count  # Before the first update there is none.
    learned = averaged_params(step.ema_decay, state.ema) if has_average else state.params
    return Fitted(learned, *numbers.T)


def _laid_out(rows: Rows, micro_batches: int, mesh: Mesh | None) -> Rows:
    """The rows of a step as micro-batches [A, B, W], on a mesh each cut over all devices."""
    cut = Rows(*(array.reshape(micro_batches, -1, array.shape[-1]) for array in rows))
    return cut if mesh is None else distribute(cut, Rows(*(across(mesh, axis=1),) * 2))


def _save(file: Path, state: TrainState, numbers: np.ndarray) -> None:
    leaves = {f"{i:04}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    write_bytes(file, array_bytes({**leaves, "numbers": numbers}))


def _restore(file: Path, state: TrainState, numbers: np.ndarray) -> tuple[TrainState, int]:
    """The state of a snapshot and the steps it has done; the given state and 0 where there is none that fits."""
    leaves, structure = jax.tree.flatten(state)
    try:
        saved = arrays_of(file.read_bytes())
        found = [saved[f"{i:04}"] for i in range(len(leaves))]
        if [leaf.shape for leaf in found] != [leaf.shape for leaf in leaves] or saved["numbers"].shape != numbers.shape:
            return state, 0
    except (FileNotFoundError, KeyError, ValueError):
        return state, 0
    numbers[:] = saved["numbers"]
    restored = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in found])
    return restored, int(restored.step)
