"""Finding a transform's state inside the state of a whole chain."""

from typing import Any

import jax
import optax


def states_of(state: optax.OptState, *kinds: type) -> list[Any]:
    """All nodes of these types, in the order of `jax.tree.leaves`; what lies inside one of them is not searched."""
    is_kind = lambda node: isinstance(node, kinds)  # noqa: E731
    return [node for node in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(node)]
