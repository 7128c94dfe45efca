"""Momentum with Nesterov's look-ahead, in the three forms that Muon implementations use.

They agree on the direction of a constant gradient and in the long run; they differ in the first steps and in scale. A
polar factor forgets the scale, so for Muon only the first steps matter.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

STYLES = ("keller", "optax", "heavyball")


class NesterovEmaState(NamedTuple):
    """State of `scale_by_nesterov_ema`."""

    count: jax.Array  # int32 scalar: updates done.
    mu: optax.Updates  # Momentum M, like the parameters, in mu_dtype.


def scale_by_nesterov_ema(
    beta: optax.ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = True,
    style: str = "keller",
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Replaces gradients g by their momentum.

    Args:
        beta: decay b of the momentum per update, or a schedule of it.
        nesterov: look one step ahead, as below; without it the result is M (bias-corrected for "optax").
        style: "keller", M <- b M + (1-b) g and b M + (1-b) g, without bias correction (github.com/KellerJordan/Muon);
            "optax", the same with M corrected for update t+1 and g for update t (`optax.contrib.muon`); "heavyball",
            M <- b M + g and g + b M (torch.optim.SGD).
        mu_dtype: of the momentum; that of the parameters by default. Use float32 for bfloat16 parameters.

    Returns:
        A transform with `NesterovEmaState`. Arithmetic is in float32 or wider, results keep the dtype of the gradients.
    """
    if style not in STYLES:
        raise ValueError(f"unknown momentum style {style!r}, expected one of {', '.join(STYLES)}")

    def init(params: optax.Params) -> NesterovEmaState:
        return NesterovEmaState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params, dtype=mu_dtype))

    def update(
        updates: optax.Updates, state: NesterovEmaState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NesterovEmaState]:
        del params
        b = beta(state.count) if callable(beta) else beta
        count = optax.safe_increment(state.count)
        weight = 1.0 if style == "heavyball" else 1 - b
        mu = jax.tree.map(lambda m, g: b * _wide(m) + weight * _wide(g), state.mu, updates)
        direction = jax.tree.map(lambda m, g: _direction(m, _wide(g), b, count).astype(g.dtype), mu, updates)
        mu = jax.tree.map(lambda new, old: new.astype(old.dtype), mu, state.mu)
        return direction, NesterovEmaState(count, mu)

    def _direction(m: jax.Array, g: jax.Array, b: Any, count: jax.Array) -> jax.Array:
        if style == "heavyball":
            return g + b * m if nesterov else m
        if style == "keller":
            return b * m + (1 - b) * g if nesterov else m
        now, following = 1 - b**count, 1 - b ** (count + 1)
        return b * m / following + (1 - b) * g / now if nesterov else m / now

    return optax.GradientTransformation(init, update)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
