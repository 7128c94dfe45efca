"""The alignment of gradients with their weights, as `metrics.jsonl` keeps it: per layer and per group."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fftlm_jax.optim import RadialStats, group_of

# Names in the record: rho and its scale-free form, and the lengths of the two parts of the gradient.
_FIELDS = {"rho": "ratio", "cosine": "cosine", "parallel": "parallel_norm", "perpendicular": "perpendicular_norm"}
_DIGITS = 4  # Significant ones.


def radial_record(radial: Mapping[str, RadialStats]) -> dict[str, Any]:
    """JSON-ready numbers.

    Returns:
        `rho`, `cosine`, `parallel` and `perpendicular`, each {path: one number per layer}; and `groups`, for every
        group the mean over its matrices of rho (`rho`), of its absolute value (`abs_rho`), and the same of the cosine.
        Signed means cancel where layers disagree; absolute ones do not.
    """
    record: dict[str, Any] = {
        name: {path: [_rounded(x) for x in np.ravel(getattr(stats, field))] for path, stats in radial.items()}
        for name, field in _FIELDS.items()
    }
    members: dict[str, list[str]] = {}
    for path in radial:
        members.setdefault(group_of(path) or path, []).append(path)
    record["groups"] = {
        group: {
            f"{prefix}{name}": _rounded(np.mean([function(getattr(radial[path], field)).mean() for path in paths]))
            for name, field in (("rho", "ratio"), ("cosine", "cosine"))
            for prefix, function in (("", np.asarray), ("abs_", np.abs))
        }
        for group, paths in members.items()
    }
    return record


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
