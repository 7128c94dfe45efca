"""Parameters to groups by path: first matching rule wins, and every parameter must match one.

By path and never by rank: stacked gains are 2-D and stacked matrices 3-D, so `ndim == 2` gets both wrong.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

Rules = Sequence[tuple[str, str]]

# (group, regular expression over the whole slash-separated path).
PARAMETER_RULES: Rules = (
    ("mixer", r"blocks/mixer/w_(in|gate|out)/kernel"),
    ("attention", r"blocks/mixer/w_[qkvo]/kernel"),
    ("mlp", r"blocks/mlp/w_\w+/kernel"),
    ("head", r"head/kernel"),
    ("embedding", r"embed/embedding"),
    ("convolution", r"blocks/mixer/(spectrum|taps)"),
    ("gain", r"blocks/mixer/gain"),
    ("norm", r"(.*/)?\w*norm/scale"),
    ("memory", r"memory/(rho|theta|w_read/kernel)"),
)

# Matrices of linear maps inside the blocks: Muon's.
MUON_GROUPS = frozenset({"mixer", "attention", "mlp"})
# Weight decay acts on those and the head: not on embeddings (rows of rare bytes would fade), kernels, gains, norms and
# memory.
DECAYED_GROUPS = MUON_GROUPS | {"head"}


def path_string(path: tuple[Any, ...]) -> str:
    """Slash-separated name of a leaf, as in `blocks/mixer/w_in/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def group_of(path: str, rules: Rules = PARAMETER_RULES) -> str | None:
    """Group of a parameter by its slash-separated path, or None."""
    return next((group for group, pattern in rules if re.fullmatch(pattern, path)), None)


def label_params(params: Any, rules: Rules = PARAMETER_RULES) -> Any:
    """Tree of group names with the structure of `params`.

    Raises:
        ValueError: naming every parameter that no rule covers.
    """
    orphans: list[str] = []

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        del leaf
        group = group_of(path_string(path), rules)
        if group is None:
            orphans.append(path_string(path))
        return group or ""

    labels = jax.tree_util.tree_map_with_path(label, params)
    if orphans:
        raise ValueError(f"no routing rule covers the parameters {', '.join(orphans)}")
    return labels
