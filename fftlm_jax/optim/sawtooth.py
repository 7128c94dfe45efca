"""The sawtooth learning rate: cosine teeth over stages, restarted or reduced when a cutoff is raised.

With `a = max(anchor, stage start)` and `p = clip((count - a) / max(stage end - a, 1), 0, 1)`:

    lr = base * scale * (floor + (peak - floor) * (1 + cos(pi p)) / 2)

Nothing here knows of epochs or cutoffs: stages are a table in steps, and an event is a traced argument of `update`,
so that a raise never recompiles.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.leaves import states_of


class Stage(NamedTuple):
    """Steps [start, end) with multipliers of the base learning rate at the top and bottom of their teeth."""

    start: int
    end: int
    peak: float
    floor: float


class SawtoothState(NamedTuple):
    """State of `scale_by_sawtooth`, all scalars: saved and restored like any optimizer state."""

    count: jax.Array  # int32: updates done.
    anchor: jax.Array  # int32: count at the last restart, 0 before the first.
    scale: jax.Array  # float32: product of all reductions.
    learning_rate: jax.Array  # float32: the value the last update used, base * first peak before any.


def stages_in_steps(
    stages: Sequence[tuple[int | str, float, float]], steps_per_epoch: int, epochs: int
) -> tuple[Stage, ...]:
    """Turns rows (epochs or "rest", peak, floor) into steps.

    Epochs may be fractions that make whole steps.

    Raises:
        ValueError: for no rows, parts of a step, a stage that does not fit, or "rest" before the last row.

    >>> stages_in_steps(((2, 1.0, 0.1), ("rest", 1.0, 0.05)), steps_per_epoch=10, epochs=5)
    (Stage(start=0, end=20, peak=1.0, floor=0.1), Stage(start=20, end=50, peak=1.0, floor=0.05))
    """
    table: list[Stage] = []
    start, total = 0, epochs * steps_per_epoch
    for number, (length, peak, floor) in enumerate(stages, start=1):
        where = f"stages: number {number} ({length!r}, {peak}, {floor})"
        end = total if length == "rest" else start + _whole_steps(length, steps_per_epoch, where)
        if not start < end <= total or (length == "rest" and number < len(stages)):
            raise ValueError(f"{where} would be steps {start} to {end} of {total}; 'rest' stands last, others fit")
        table.append(Stage(start, end, float(peak), float(floor)))
        start = end
    _require_stages(table)
    return tuple(table)


def _whole_steps(length: Any, steps_per_epoch: int, where: str) -> int:
    if isinstance(length, bool) or not isinstance(length, Real) or not math.isfinite(length):
        raise ValueError(f"{where} lasts no number of epochs; give one, or 'rest'")
    steps = float(length) * steps_per_epoch
    if abs(steps - round(steps)) > 1e-6:  # 0.07 of 100 steps is 7.000000000000001.
        raise ValueError(f"{where} lasts {steps:g} steps of {steps_per_epoch} an epoch; give whole steps")
    return round(steps)


def _require_stages(stages: Sequence[Stage]) -> None:
    if not stages:
        raise ValueError("stages: there are none; give at least one, such as Stage(0, steps, 1.0, 0.05)")


def sawtooth_lr(
    count: jax.typing.ArrayLike,
    stages: Sequence[Stage],
    base: jax.typing.ArrayLike,
    *,
    anchor: jax.typing.ArrayLike = 0,
    scale: jax.typing.ArrayLike = 1.0,
    cutoff_raised: jax.typing.ArrayLike = False,
) -> jax.Array:
    """Learning rate of update number `count`.

    Args:
        count: updates done before this one, from 0. Beyond the last stage its floor holds.
        stages: contiguous, in order, from step 0.
        base: learning rate that the multipliers scale.
        anchor: count of the last restart; the tooth it began lasts until its stage's end.
        scale: product of all reductions so far.
        cutoff_raised: the peak for this count, whatever the tooth says (the original program's one-step pulse).

    Returns:
        float32 scalar (or the broadcast shape of count, anchor, scale and cutoff_raised).
    """
    _require_stages(stages)
    count = jnp.asarray(count, jnp.int32)
    starts, ends, peaks, floors = (jnp.asarray(column) for column in zip(*stages, strict=True))
    i = jnp.clip(jnp.searchsorted(starts, count, side="right") - 1, 0, len(stages) - 1)
    begin = jnp.maximum(anchor, starts[i])
    # max(., 1): a restart at the very last step leaves a tooth of no length, and 0/0 would be a NaN learning rate.
    progress = jnp.clip((count - begin) / jnp.maximum(ends[i] - begin, 1), 0.0, 1.0).astype(jnp.float32)
    progress = jnp.where(cutoff_raised, 0.0, progress)
    peak, floor = peaks[i].astype(jnp.float32), floors[i].astype(jnp.float32)
    multiplier = floor + (peak - floor) * (1 + jnp.cos(jnp.pi * progress)) / 2
    return (jnp.asarray(base, jnp.float32) * scale * multiplier).astype(jnp.float32)


def sawtooth_schedule(stages: Sequence[Stage], base: float) -> optax.Schedule:
    """The same teeth as a plain optax schedule (count -> learning rate), for use without events."""
    return lambda count: sawtooth_lr(count, stages, base)


def scale_by_sawtooth(stages: Sequence[Stage], base: float) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the sawtooth learning rate, answering events given to `update`.

    `update(updates, state, params, restart=, pulse=, reduce_by=)`, all optional and traced:
    `restart` (bool) begins a new tooth at this update, from the peak to the stage's end;
    `pulse` (bool) uses the peak for this update only and changes nothing else;
    `reduce_by` (float) multiplies the learning rate for good, so reductions compound.

    Accumulate gradients inside the step, not with `optax.MultiSteps`: it calls this transform on the last mini-step
    only, and an event given to any other would be lost.

    Args:
        stages: contiguous, in order, from step 0.
        base: learning rate that the stages' multipliers scale.

    Returns:
        A transform with `SawtoothState`; read the value in force with `sawtooth_learning_rate`.

    Example:
        >>> stages = (Stage(0, 100, 1.0, 0.1), Stage(100, 400, 1.0, 0.05))
        >>> tx = optax.chain(optax.scale_by_adam(), scale_by_sawtooth(stages, base=1e-3))
        >>> params = {"w": jnp.ones(3)}
        >>> state = tx.init(params)
        >>> updates, state = tx.update(params, state, params, restart=True, reduce_by=0.5)
        >>> round(float(sawtooth_learning_rate(state)), 6)
        0.0005
    """

    def init(params: optax.Params) -> SawtoothState:
        del params
        zero = jnp.zeros((), jnp.int32)
        return SawtoothState(zero, jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32), sawtooth_lr(zero, stages, base))

    def update(
        updates: optax.Updates,
        state: SawtoothState,
        params: optax.Params | None = None,
        *,
        restart: jax.typing.ArrayLike = False,
        pulse: jax.typing.ArrayLike = False,
        reduce_by: jax.typing.ArrayLike = 1.0,
        **extra: Any,
    ) -> tuple[optax.Updates, SawtoothState]:
        del params, extra
        anchor = jnp.where(restart, state.count, state.anchor)
        scale = state.scale * jnp.asarray(reduce_by, jnp.float32)
        lr = sawtooth_lr(state.count, stages, base, anchor=anchor, scale=scale, cutoff_raised=pulse)
        updates = jax.tree.map(lambda u: (-lr * u).astype(u.dtype), updates)
        return updates, SawtoothState(optax.safe_increment(state.count), anchor, scale, lr)

    return optax.GradientTransformationExtraArgs(init, update)


def sawtooth_learning_rate(state: optax.OptState) -> jax.Array:
    """The learning rate that the last update used, from any optimizer state with one `scale_by_sawtooth` in it.

    Raises:
        ValueError: if the state holds none, or several.
    """
    found = states_of(state, SawtoothState)
    if len(found) != 1:
        raise ValueError(f"the optimizer state holds {len(found)} SawtoothState, expected exactly one")
    return found[0].learning_rate
