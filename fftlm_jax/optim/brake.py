"""The radial brake: steps that lengthen a weight are shortened along it, steps that shorten it are not.

Weight norms under Muon grow by the many small outward parts of updates that are each nearly tangent. The brake acts on
the step that is really made, so it is the last link of a chain, behind learning rate and weight decay.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.leaves import (
    LayoutSetting,
    from_matrices,
    leaf_paths,
    require_params,
    resolve_layouts,
    to_matrices,
)
from fftlm_jax.optim.radial import inner_product, safe_divide, safe_norm, unit_vectors, wide


def brake_step(
    step: jax.Array,
    weight: jax.Array,
    outward: jax.typing.ArrayLike = 0.5,
    inward: jax.typing.ArrayLike = 1.0,
    correct_radius: bool = True,
) -> jax.Array:
    """The step to make instead of `step`, for weights (batch..., in, out); see `radial_brake`."""
    wide_step, w = wide(step), wide(weight)
    unit, radius = unit_vectors(w), safe_norm(w)
    along = inner_product(wide_step, unit)
    kept = jnp.where(along > 0, outward, inward).astype(along.dtype) * along
    result = wide_step + (kept - along) * unit
    if correct_radius:
        moved = w + result
        target = jnp.maximum(radius + kept, 0)
        # A zero weight has no radius to keep: every step from it is outward, and all of it is wanted.
        result = jnp.where(radius == 0, wide_step, moved * safe_divide(target, safe_norm(moved)) - w)
    return result.astype(step.dtype)


def radial_brake(
    outward: jax.typing.ArrayLike = 0.5,
    inward: jax.typing.ArrayLike = 1.0,
    *,
    correct_radius: bool = True,
    layout: LayoutSetting = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the part of a step along its weight by `outward` where it lengthens the weight, else by `inward`.

    Unlike the other transforms this one reads updates as steps: W becomes W + step. Put it last.

    Args:
        outward: factor of parts that lengthen the weight; 1 leaves them.
        inward: factor of parts that shorten it; 1 leaves them.
        correct_radius: also remove what a step across the weight adds to its norm, which then changes by the part along
            it exactly: to first order in the step nothing else would.
        layout: the matrices of the leaves, see `resolve_layouts`. Leaves of rank below 2 are one vector each.

    Returns:
        A stateless transform, whose update needs `params`.
    """

    def brake(step: jax.Array, weight: jax.Array, leaf_layout: Any, name: str) -> jax.Array:
        if step.ndim < 2:
            flat = brake_step(step.reshape(1, -1), weight.reshape(1, -1), outward, inward, correct_radius)
            return flat.reshape(step.shape)
        pairs = zip(to_matrices(step, leaf_layout, name), to_matrices(weight, leaf_layout, name), strict=True)
        braked = tuple(brake_step(s, w, outward, inward, correct_radius) for s, w in pairs)
        return from_matrices(braked, leaf_layout, step.shape)

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra
        require_params(params, "radial_brake")
        steps, treedef = jax.tree.flatten(updates)
        weights, layouts = treedef.flatten_up_to(params), resolve_layouts(layout, updates)
        return treedef.unflatten(list(map(brake, steps, weights, layouts, leaf_paths(updates)))), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def hyperball(*, layout: LayoutSetting = None) -> optax.GradientTransformationExtraArgs:
    """The brake that keeps every norm: steps move weights on the sphere of their radius. Zero weights move freely."""
    return radial_brake(0.0, 0.0, correct_radius=True, layout=layout)
