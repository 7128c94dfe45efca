"""Arrays of a nested dict by name, and in which of them two sets of arrays differ."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def by_name(tree: Any, separator: str) -> dict[str, Any]:
    """The leaves of a tree by the names on their path, joined."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=separator): leaf for path, leaf in leaves}


def misfits(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Says of every array that is missing, unexpected or of another shape or dtype what it is and must be."""
    have, need = ({name: (tuple(a.shape), np.dtype(a.dtype)) for name, a in x.items()} for x in (found, wanted))
    return [
        f"{name} is {have.get(name, 'missing')} but must be {need.get(name, 'absent')}"
        for name in sorted({*have, *need})
        if have.get(name) != need.get(name)
    ]
