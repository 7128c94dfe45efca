"""One setting, many leaves: a value for all of them, by path, or as a tree.

A setting of a transform (alpha, a layout) is most often one value. Where leaves differ, a path says more than a tree of
values, and keeps saying it when the model gains a layer.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from fftlm_jax.optim.routing import path_string


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
