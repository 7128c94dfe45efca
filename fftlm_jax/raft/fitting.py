"""One training of a fine-tuning run: known steps at known rates, resumable from a snapshot of its state."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fftlm_jax.errors import NonFiniteError
from fftlm_jax.model.language_model import Params
from fftlm_jax.raft.journal import array_bytes, arrays_of
from fftlm_jax.training.fine_tune import FineTuneState, FineTuneStep, Rows
from fftlm_jax.training.run_directory import write_bytes

_NUMBERS = ("loss", "grad_norm", "update_ratio")


class Fitted(NamedTuple):
    """What a training left: the weights or adapters, and the numbers of its steps, float64 [steps]."""

    trained: Any
    loss: np.ndarray
    grad_norm: np.ndarray
    update_ratio: np.ndarray


def fit(
    step: FineTuneStep,
    tx: optax.GradientTransformation,
    base: Params,
    trained: Any,
    batches: Iterator[Rows],
    rates: np.ndarray,
    key: jax.Array,
    *,
    snapshot: Path,
    every: int,
    pause: Callable[[int], bool],
) -> Fitted | None:
    """Trains through all batches.

    Args:
        step: of `make_fine_tune_step`.
        tx: its optimizer; the state is fresh.
        base: weights that stay as they are; {} where all are trained.
        trained: what is trained, as it is before the first step.
        batches: one per rate.
        rates: learning rate of every step.
        key: of dropout.
        snapshot: where the state is saved; one that is there is gone on from.
        every: steps between snapshots.
        pause: called after every step with the number done; True saves a snapshot and ends early.

    Returns:
        What came out, or None if it was paused.

    Raises:
        NonFiniteError: at a step whose loss, gradient or update is not finite.
    """
    # The step donates its state, and what the caller holds must outlive it.
    state = FineTuneState(jax.tree.map(jnp.array, trained), tx.init(trained), jnp.zeros((), jnp.int32))
    numbers = np.zeros((len(rates), len(_NUMBERS)))
    state, done = _restore(snapshot, state, numbers)
    for index, (rows, rate) in enumerate(zip(batches, rates, strict=True)):
        if index < done:
            continue
        state, metrics = step(base, state, rows, np.float32(rate), key)
        numbers[index] = [float(value) for value in metrics]
        if not np.isfinite(numbers[index]).all():
            loss, grad_norm, _ = numbers[index]
            raise NonFiniteError(
                f"step {index + 1} of {len(rates)}: loss {loss}, gradient norm {grad_norm} at LR {rate:.1e}; nothing "
                f"of it was saved. Move cycles/{snapshot.parent.name} away, lower raft.lr_base or raft.sft_lr (with "
                "--config.resume.allow=raft) and run the same command: it begins that cycle anew."
            )
        is_paused = pause(index + 1)
        if is_paused or (index + 1) % every == 0:
            _save(snapshot, state, numbers)
        if is_paused:
            return None
    return Fitted(state.trained, *numbers.T)


def _save(file: Path, state: FineTuneState, numbers: np.ndarray) -> None:
    leaves = {f"{i:04}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    write_bytes(file, array_bytes({**leaves, "numbers": numbers}))


def _restore(file: Path, state: FineTuneState, numbers: np.ndarray) -> tuple[FineTuneState, int]:
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
