"""Learning rates that can be read back out of an optimizer's state, whichever schedule made them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.sawtooth import SawtoothState
from fftlm_jax.optim.state_search import states_of


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
