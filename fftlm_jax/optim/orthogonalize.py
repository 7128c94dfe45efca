"""Polar factors of a whole tree: leaves of one shape go through one batched iteration.

Twelve layers of four projections are two or three shapes. One batched product for each is less to compile and fewer
kernels to start than one per leaf. With a sharding on the stack axis every device iterates whole matrices of its own:
sharded rows would be gathered at every product.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.leaves import LayoutSetting, join_tree, split_tree
from fftlm_jax.optim.polar import PolarMethod, polar

# Enough to fill a device, few enough that the temporaries of a large model do not.
MAX_STACK = 64

StackSharding = jax.sharding.NamedSharding | Callable[[tuple[int, ...]], jax.sharding.NamedSharding] | None


def orthogonalize(
    method: PolarMethod = "polar_express",
    *,
    steps: int | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    safety: float | None = None,
    preconditioning: str = "frobenius",
    layout: LayoutSetting = None,
    max_stack: int | None = None,
    stack_sharding: jax.sharding.NamedSharding | None = None,
    leaf_sharding: StackSharding = None,
) -> optax.GradientTransformation:
    """Replaces every matrix by its polar factor. Stateless.

    Args:
        method, steps, dtype, safety, preconditioning: see `polar`.
        layout: the matrices of the leaves, see `resolve_layouts`; the last two axes of each leaf by default.
        max_stack: matrices in one batched iteration, 64 by default.
        stack_sharding: of the stacks (stack, in, out) during the iteration, for example
            `NamedSharding(mesh, PartitionSpec("data"))` on a mesh of automatic axes. Stacks are padded to a multiple
            of its first axis.
        leaf_sharding: with `stack_sharding`, that of the stacks before and after the iteration, or a function of
            their shape (stack, in, out) that gives it. Left to itself, the partitioner carries the stack's sharding on
            into whatever is computed from leaves, and where stacks need padding it moves single numbers and pieces of
            matrices about. The sharding of the leaves themselves makes that one exchange on either side;
            `NamedSharding(mesh, PartitionSpec())`, for leaves that are whole on every device, one gather.

    Raises:
        ValueError: in update, naming a leaf of rank below 2.
    """

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def factor(stack: jax.Array) -> jax.Array:
        return polar(stack, method, steps=steps, dtype=dtype, safety=safety, preconditioning=preconditioning)

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        matrices, treedef = jax.tree.flatten(split_tree(updates, layout))
        factors = map_stacked(factor, matrices, max_stack or MAX_STACK, stack_sharding, leaf_sharding)
        return join_tree(treedef.unflatten(factors), updates, layout), state

    return optax.GradientTransformation(init, update)


def map_stacked(
    function: Callable[[jax.Array], jax.Array],
    arrays: Sequence[jax.Array],
    max_stack: int = MAX_STACK,
    sharding: jax.sharding.NamedSharding | None = None,
    around: StackSharding = None,
) -> list[jax.Array]:
    """`function` of every array, called once for all matrices of one shape and dtype (or for `max_stack` of them).

    Args:
        function: acts on (stack, m, n) matrix by matrix and keeps the shape.
        arrays: (batch..., m, n) each.
        max_stack: matrices given to one call at most.
        sharding: of the stacks at the call; None leaves it to the compiler.
        around: with `sharding`, that of the stacks before they are dealt out and after, or a function of their shape
            that gives it; None leaves it to the compiler.
    """
    results: list[Any] = [None] * len(arrays)
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        groups.setdefault((x.shape[-2:], x.dtype), []).append(i)
    for members in groups.values():
        stacks = [arrays[i].reshape(-1, *arrays[i].shape[-2:]) for i in members]
        stack = stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)
        parts = [stack[start : start + max_stack] for start in range(0, len(stack), max_stack)]
        parts = [_call_sharded(function, part, sharding, around) for part in parts]
        stack = stack if not parts else parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        cuts = [sum(map(len, stacks[: k + 1])) for k in range(len(stacks) - 1)]
        for i, part in zip(members, jnp.split(stack, cuts) if cuts else [stack], strict=True):
            results[i] = part.reshape(arrays[i].shape)
    return results


def _call_sharded(
    function: Callable[[jax.Array], jax.Array],
    stack: jax.Array,
    sharding: jax.sharding.NamedSharding | None,
    around: StackSharding,
) -> jax.Array:
    if sharding is None:
        return function(stack)
    padding = -len(stack) % _first_axis_parts(sharding)
    around = around(stack.shape) if callable(around) else around
    padded = jnp.pad(_constrain(stack, around), ((0, padding), (0, 0), (0, 0))) if padding else stack
    halfway = None if around is None else _halfway(sharding, around)
    dealt = _constrain(_constrain(_constrain(padded, around), halfway), sharding)
    factors = _constrain(_constrain(function(dealt), sharding), halfway)
    return _constrain(factors, around)[: len(stack)]


def _constrain(x: jax.Array, sharding: jax.sharding.NamedSharding | None) -> jax.Array:
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def _halfway(dealt: jax.sharding.NamedSharding, held: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
    """Held as before, but along the stack dealt to the axes that `held` does not use.

    One step from here is a slice or gather over those axes, the other an exchange over the axes of `held`; asked for
    both at once, the partitioner gathers over all of them.
    """
    used = set(jax.tree.leaves(tuple(held.spec)))
    rest = tuple(name for name in _first_axis_names(dealt) if name not in used)
    return jax.sharding.NamedSharding(held.mesh, jax.sharding.PartitionSpec(rest or None, *held.spec[1:]))


def _first_axis_parts(sharding: jax.sharding.NamedSharding) -> int:
    return math.prod(sharding.mesh.shape[name] for name in _first_axis_names(sharding))


def _first_axis_names(sharding: jax.sharding.NamedSharding) -> tuple[str, ...]:
    names = sharding.spec[0] if len(sharding.spec) else None
    return names if isinstance(names, tuple) else (names,) if names else ()
