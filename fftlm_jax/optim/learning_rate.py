"""Learning rates that can be read back out of an optimizer's state, and the staged schedule with a cooldown.

The schedule of the modded-nanogpt speed runs that the source document's sweep used: 1560 scheduled steps in three equal
stages, 40 more at the floor. A batch n times as large takes a learning rate about n^0.5 to n^0.6 times as large, hence
the multipliers. All functions return optax schedules: step -> value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.leaves import states_of
from fftlm_jax.optim.sawtooth import SawtoothState


class ScheduledState(NamedTuple):
    """State of `scale_by_scheduled_learning_rate`."""

    count: jax.Array  # int32 scalar: updates done.
    learning_rate: jax.Array  # float32 scalar: the value the last update used, the first one before any.


def scale_by_scheduled_learning_rate(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus a schedule, like `optax.scale_by_learning_rate`, and keeps the value in its state.

    Args:
        schedule: updates done -> learning rate. Events of the sawtooth given to `update` have no effect.
    """

    def init(params: optax.Params) -> ScheduledState:
        del params
        return ScheduledState(jnp.zeros((), jnp.int32), jnp.asarray(schedule(0), jnp.float32))

    def update(
        updates: optax.Updates, state: ScheduledState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ScheduledState]:
        del params, extra
        lr = jnp.asarray(schedule(state.count), jnp.float32)
        updates = jax.tree.map(lambda u: (-lr * u).astype(u.dtype), updates)
        return updates, ScheduledState(optax.safe_increment(state.count), lr)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_given_learning_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the `learning_rate` that every call of `update` is given, an array or a number.

    Keeps no state: for loops whose rate is known outside, such as that of a fine-tuning cycle. Traced, so a new value
    does not recompile.
    """

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        learning_rate: jax.typing.ArrayLike,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra
        return jax.tree.map(lambda u: (-learning_rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def learning_rate_in_force(state: optax.OptState) -> jax.Array:
    """The learning rate that the last update used, from any optimizer state with one such transform in it.

    Raises:
        ValueError: if the state holds none, or several.
    """
    found = states_of(state, SawtoothState, ScheduledState)
    if len(found) != 1:
        raise ValueError(f"the optimizer state holds {len(found)} learning rates, expected exactly one")
    return found[0].learning_rate


STAGE_MULTIPLIERS = (1.0, 1.52, 1.73)
STAGE_BATCH_TOKENS = (131_072, 262_144, 393_216)
SHAPES = ("linear", "exponential")


def stage_schedule(values: Sequence[float], steps: int) -> optax.Schedule:
    """One value for each of `len(values)` equal stages of `steps` steps together; the last one holds beyond them.

    >>> batch = stage_schedule(STAGE_BATCH_TOKENS, 1560)
    >>> [int(batch(step)) for step in (0, 519, 520, 1040, 1599)]
    [131072, 131072, 262144, 393216, 393216]
    """
    starts = jnp.array([steps * i // len(values) for i in range(len(values))])

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return jnp.asarray(values)[jnp.searchsorted(starts, count, side="right") - 1]

    return schedule


def stage_cooldown_schedule(
    steps: int = 1560,
    multipliers: Sequence[float] = STAGE_MULTIPLIERS,
    *,
    cooldown_fraction: float = 0.55,
    floor: float = 0.1,
    shape: str = "linear",
) -> optax.Schedule:
    """Multiplier of the learning rate: that of the stage, then from it down to `floor` over the last steps.

    With t from 0 to 1 over the cooldown, m = stage (1 - t) + floor t. The stage's multiplier enters the cooldown too,
    so the learning rate jumps up where a stage begins, as the batch does.

    Args:
        steps: scheduled steps; `floor` holds from there on.
        multipliers: one for each of the equal stages.
        cooldown_fraction: part of `steps` that the cooldown takes.
        floor: multiplier at the end.
        shape: "linear", as above, or "exponential", m = stage^(1-t) floor^t.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown cooldown shape {shape!r}, expected one of {', '.join(SHAPES)}")
    # Cut, not rounded: 1560 * (1 - 0.55) is 701.99 in binary, and the source's cooldown begins at 701.
    start = int(steps * (1 - cooldown_fraction))
    stage = stage_schedule(multipliers, steps)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.clip((jnp.asarray(count) - start) / max(steps - start, 1), 0.0, 1.0)
        if shape == "exponential":
            return stage(count) ** (1 - t) * floor**t
        return stage(count) * (1 - t) + floor * t

    return schedule


def momentum_schedule(
    steps: int = 1600, *, low: float = 0.85, high: float = 0.95, warmup: int = 300, cooldown: int = 50
) -> optax.Schedule:
    """Momentum from `low` to `high` over the first `warmup` steps, and back over the last `cooldown` of `steps`."""

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count)
        risen = jnp.clip(count / max(warmup, 1), 0.0, 1.0)
        fallen = jnp.clip((count - (steps - cooldown)) / max(cooldown, 1), 0.0, 1.0)
        return low + (high - low) * jnp.minimum(risen, 1 - fallen)

    return schedule
