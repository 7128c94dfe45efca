"""Stages of growing batches with a cooldown across them: multipliers of the learning rate, batch sizes, momentum.

The schedule of the modded-nanogpt speed runs that the source document's sweep used: 1560 scheduled steps in three equal
stages, 40 more at the floor. A batch n times as large takes a learning rate about n^0.5 to n^0.6 times as large, hence
the multipliers. All functions return optax schedules: step -> value.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

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
