"""Cautious weight decay: decay only the coordinates that the update shrinks anyway."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.matrix_layout import require_params


class CautiousDecayState(NamedTuple):
    """State of `add_cautious_decayed_weights`."""

    count: jax.Array  # int32 scalar: updates done, for schedules.


def cautious_decay(update: jax.Array, weight: jax.Array, decay: jax.typing.ArrayLike, strict: bool) -> jax.Array:
    """`update + decay * weight` where both have the same sign, `update` elsewhere; `update` is a direction of ascent.

    A product of exactly 0 counts as the same sign unless `strict`. Of complex entries it is the real part of u conj(w).
    """
    product = (update * weight.conj()).real
    is_decayed = product > 0 if strict else product >= 0
    decay = jnp.asarray(decay).astype(jnp.promote_types(update.real.dtype, jnp.float32))
    return (update + jnp.where(is_decayed, decay * weight, 0)).astype(update.dtype)


def add_cautious_decayed_weights(
    weight_decay: optax.ScalarOrSchedule = 0.0, *, strict: bool = False, mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Adds decayed weights to directions of ascent, so it stands before the learning rate, as in AdamW.

    Args:
        weight_decay: strength per unit of learning rate, or a schedule of it.
        strict: leave alone the entries whose update or weight is 0.
        mask: tree of booleans, or a function from parameters to one: which leaves to decay. All by default.

    Returns:
        A transform with `CautiousDecayState`, whose update needs `params`.

    Source: Chen et al., "Cautious Weight Decay" (arXiv 2510.12402).
    """

    def init(params: optax.Params) -> CautiousDecayState:
        del params
        return CautiousDecayState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: CautiousDecayState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, CautiousDecayState]:
        del extra
        require_params(params, "add_cautious_decayed_weights")
        decay = weight_decay(state.count) if callable(weight_decay) else weight_decay
        updates = jax.tree.map(lambda u, w: cautious_decay(u, w, decay, strict), updates, params)
        return updates, CautiousDecayState(optax.safe_increment(state.count))

    tx = optax.GradientTransformationExtraArgs(init, update)
    return tx if mask is None else optax.masked(tx, mask)
