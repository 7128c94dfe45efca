"""Reads the radial statistics out of an optimizer state, wherever in it they are."""

import collections

import jax
import optax

from fftlm_jax.optim.radial import RadialStats
from fftlm_jax.optim.routing import path_string
from fftlm_jax.optim.state_search import states_of
from fftlm_jax.optim.with_spectral import SpectralState


def radial_statistics(state: optax.OptState) -> dict[str, RadialStats]:
    """Diagnostics of the last update by path of the parameter, out of any optimizer state.

    Arrays with several matrices of different widths have an index behind their path. Empty where nothing is kept.

    Raises:
        ValueError: if two `with_spectral` describe the same parameter.
    """
    is_stats = lambda node: isinstance(node, RadialStats)  # noqa: E731
    found: dict[str, RadialStats] = {}
    for node in states_of(state, SpectralState):
        entries = jax.tree_util.tree_leaves_with_path(node.stats, is_leaf=is_stats)
        counts = collections.Counter(path[:-1] for path, _ in entries)
        for path, stats in entries:
            name = path_string(path if counts[path[:-1]] > 1 else path[:-1])
            if name in found:
                raise ValueError(f"the optimizer state holds radial statistics of {name} twice")
            found[name] = stats
        found |= {name: s for name, s in radial_statistics(node.inner).items() if name not in found}
    return found
