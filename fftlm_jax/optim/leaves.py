"""Leaves of a parameter tree: as matrices, with settings of their own, and their states inside a chain.

A setting of a transform (alpha, a layout) is most often one value. Where leaves differ, a path says more than a tree of
values, and keeps saying it when the model gains a layer.

`in` is the axis that a product `x @ W` sums over, `out` the one it produces. All other axes are batch: a stack of
layers [layers, in, out] is `layers` matrices. Statistics are per matrix, and so is everything else here.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class PerPath:
    """A setting computed from the slash-separated path of a leaf. Distinct from a schedule, which is also a callable.

    >>> PerPath(lambda path: 0.1 if "mlp" in path else 0.0).value_of("blocks/mlp/w_in")
    0.1
    """

    value_of: Callable[[str], Any]


def leaf_paths(tree: Any) -> list[str]:
    """Slash-separated paths of the leaves of `tree`, in the order of `jax.tree.leaves`."""
    return [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def per_leaf(setting: Any, tree: Any, is_value: Callable[[Any], bool]) -> list[Any]:
    """Values of a setting for every leaf of `tree`, in the order of `jax.tree.leaves`.

    Args:
        setting: one value; or a mapping from regular expressions to values, searched in the path, first match wins; or
            a `PerPath`; or a tree of values that is a prefix of `tree`.
        tree: the parameters or updates. Masked leaves take no value.
        is_value: whether an object is one value (and not a tree of values).

    Raises:
        ValueError: naming every leaf that no expression of a mapping matches.
    """
    if is_value(setting):
        return [setting] * len(jax.tree.leaves(tree))
    if isinstance(setting, PerPath):
        return [setting.value_of(path) for path in leaf_paths(tree)]
    if isinstance(setting, Mapping) and all(map(is_value, setting.values())):
        return _by_expression(setting, leaf_paths(tree))
    broadcast = jax.tree.map(lambda value, part: [value] * len(jax.tree.leaves(part)), setting, tree, is_leaf=is_value)
    return [value for values in jax.tree.leaves(broadcast, is_leaf=_is_list) for value in values]


def _by_expression(setting: Mapping[str, Any], paths: list[str]) -> list[Any]:
    matches = [[value for pattern, value in setting.items() if re.search(pattern, path)] for path in paths]
    orphans = [path for path, found in zip(paths, matches, strict=True) if not found]
    if orphans:
        raise ValueError(f"none of the expressions {', '.join(setting)} matches the leaves {', '.join(orphans)}")
    return [found[0] for found in matches]


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def states_of(state: optax.OptState, *kinds: type) -> list[Any]:
    """All nodes of these types, in the order of `jax.tree.leaves`; what lies inside one of them is not searched."""
    is_kind = lambda node: isinstance(node, kinds)  # noqa: E731
    return [node for node in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(node)]


Matrices = tuple[jax.Array, ...]


class MatrixLayout(NamedTuple):
    """The matrices inside one parameter.

    Fused projections are several matrices, and so are attention heads: each has a polar factor of its own.
    `MatrixLayout(blocks=12)` cuts `out` into 12 equal blocks (heads), `MatrixLayout(blocks=(512, 64, 64))` into three
    of these widths (grouped-query QKV); `block_axis="in"` cuts `in` (an output projection, head by head).
    """

    reduction_axis: int | tuple[int, ...] = -2
    output_axis: int | tuple[int, ...] = -1
    blocks: int | tuple[int, ...] = 1
    block_axis: str = "out"


LayoutSetting = MatrixLayout | optax.contrib.MuonDimensionNumbers | Mapping[str, Any] | PerPath | Any | None


def resolve_layouts(setting: LayoutSetting, tree: Any) -> list[MatrixLayout]:
    """Layouts of the leaves of `tree`, in the order of `jax.tree.leaves`.

    Args:
        setting: None for the last two axes of every leaf; a `MatrixLayout` or `optax.contrib.MuonDimensionNumbers`;
            either of them by path (a mapping from regular expressions, or `PerPath`) or as a prefix tree; or, as in
            optax, a function from the tree to such a prefix tree.
        tree: the parameters or updates.
    """
    if callable(setting) and not isinstance(setting, PerPath):
        setting = setting(tree)
    layouts = per_leaf(setting, tree, _is_layout)
    return [_as_layout(layout) for layout in layouts]


def to_matrices(x: jax.Array, layout: MatrixLayout, name: str = "the array") -> Matrices:
    """The matrices of one leaf, (batch..., in, out) each: one array, or one for each width in `layout.blocks`.

    Equal blocks come as one more batch axis, behind the others.

    Raises:
        ValueError: naming the leaf if its rank is below 2, or the layout does not fit it.
    """
    batch, reduction, output = _axes(x.shape, layout, name)
    fan_in, fan_out = (math.prod(x.shape[axis] for axis in axes) for axes in (reduction, output))
    x = x.transpose(batch + reduction + output).reshape(*(x.shape[axis] for axis in batch), fan_in, fan_out)
    if layout.blocks == 1:
        return (x,)
    axis = -1 if layout.block_axis == "out" else -2
    if isinstance(layout.blocks, tuple):
        if sum(layout.blocks) != x.shape[axis]:
            raise ValueError(f"{name}: blocks of {layout.blocks} do not add up to {x.shape[axis]}")
        cuts = [sum(layout.blocks[: i + 1]) for i in range(len(layout.blocks) - 1)]
        return tuple(jnp.split(x, cuts, axis=axis))
    if x.shape[axis] % layout.blocks:
        raise ValueError(f"{name}: an axis of {x.shape[axis]} does not divide into {layout.blocks} equal blocks")
    return (jnp.stack(jnp.split(x, layout.blocks, axis=axis), axis=-3),)


def from_matrices(matrices: Matrices, layout: MatrixLayout, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `to_matrices` for a leaf of this shape."""
    batch, reduction, output = _axes(shape, layout, "the array")
    axis = -1 if layout.block_axis == "out" else -2
    if isinstance(layout.blocks, tuple):
        x = jnp.concatenate(matrices, axis=axis)
    elif layout.blocks > 1:
        x = jnp.concatenate(jnp.unstack(matrices[0], axis=-3), axis=axis)
    else:
        x = matrices[0]
    order = batch + reduction + output
    x = x.reshape([shape[axis] for axis in order])
    return x.transpose([order.index(axis) for axis in range(len(shape))])


def split_tree(tree: Any, setting: LayoutSetting = None) -> Any:
    """`tree` with every leaf replaced by the tuple of its matrices, see `to_matrices` and `resolve_layouts`."""
    leaves, treedef = jax.tree.flatten(tree)
    layouts = resolve_layouts(setting, tree)
    return treedef.unflatten(list(map(to_matrices, leaves, layouts, leaf_paths(tree))))


def join_tree(matrices: Any, like: Any, setting: LayoutSetting = None) -> Any:
    """Inverse of `split_tree` for a tree with the shapes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    layouts, shapes = resolve_layouts(setting, like), [leaf.shape for leaf in leaves]
    return treedef.unflatten(list(map(from_matrices, treedef.flatten_up_to(matrices), layouts, shapes)))


def require_params(params: Any, transform: str) -> None:
    """Raises ValueError where `update` was called without the parameters that a transform reads."""
    if params is None:
        raise ValueError(f"{transform} reads the current parameters: call update(updates, state, params)")


def _axes(shape: tuple[int, ...], layout: MatrixLayout, name: str) -> tuple[tuple[int, ...], ...]:
    """Batch, reduction and output axes of a leaf, counted from 0."""
    rank = len(shape)
    if rank < 2:
        raise ValueError(f"{name} has shape {shape}: Muon needs matrices, leaves of rank 2 or more")
    wanted = [(axes,) if isinstance(axes, int) else tuple(axes) for axes in layout[:2]]
    if any(not -rank <= axis < rank for axes in wanted for axis in axes):
        raise ValueError(f"{name}: the axes {wanted} are not all among the {rank} axes of shape {shape}")
    reduction, output = (tuple(axis % rank for axis in axes) for axes in wanted)
    if set(reduction) & set(output):
        raise ValueError(f"{name}: reduction axes {reduction} and output axes {output} overlap")
    batch = tuple(axis for axis in range(rank) if axis not in reduction + output)
    return batch, reduction, output


def _is_layout(node: Any) -> bool:
    return node is None or isinstance(node, MatrixLayout | optax.contrib.MuonDimensionNumbers)


def _as_layout(layout: Any) -> MatrixLayout:
    if layout is None:
        return MatrixLayout()
    return layout if isinstance(layout, MatrixLayout) else MatrixLayout(layout.reduction_axis, layout.output_axis)


def path_string(path: tuple[Any, ...]) -> str:
    """Slash-separated name of a leaf, as in `blocks/mixer/w_in/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
