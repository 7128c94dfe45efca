"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) as a plain tree beside a model's weights.

    adapters = init_adapters(params, lora, seed)      {path: {"a": [..., in, r], "b": [..., r, out]}}, b = 0
    params = merge(params, adapters, lora)            W + (alpha / r) a b at every path
    params = unmerge(params, adapters, lora)          and back, to round-off

Adapters know nothing of the model but the paths and shapes of its matrices, so training, decoding and saving need no
second version of it: they take merged weights. For a matrix this costs in * r * out products a step, nothing beside
the step itself. Leading axes (the stacked layers) stay in front.
Dropout hides inputs of `a` from a whole step at once, one mask per matrix, and not position by position.
"""

import dataclasses
import zlib

import jax
import jax.numpy as jnp

from fftlm_jax.model.language_model import Params
from fftlm_jax.optim.leaves import path_string
from fftlm_jax.runtime.jax_settings import random_key

Adapters = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Shape and scale of adapters.

    Attributes:
        rank: r.
        alpha: the product is scaled by alpha / r.
        dropout: chance that an input of `a` is hidden in a training step.
        targets: names of the matrices, such as `w_in`: the last name of a path before `kernel`.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """The factor on the product of both halves of an adapter."""
        return self.alpha / self.rank


def matrix_names(params: Params) -> dict[str, str]:
    """Path -> name of every matrix that can carry an adapter."""
    paths = [path for path, _ in _leaves(params)]
    return {path: path.split("/")[-2] for path in paths if path.endswith("/kernel")}


def target_paths(params: Params, targets: tuple[str, ...]) -> list[str]:
    """Paths of the matrices that `targets` name.

    Raises:
        ValueError: naming a target that no matrix has, and those there are.
    """
    names = matrix_names(params)
    unknown = [target for target in targets if target not in names.values()]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no matrix of this model; it has {', '.join(sorted(set(names.values())))}")
    return [path for path, name in names.items() if name in targets]


def init_adapters(params: Params, lora: LoRA, seed: int) -> Adapters:
    """Adapters that change nothing yet: `a` is random (variance 1 / in), `b` is zero.

    What an adapter starts from depends on the seed and its path only, not on the other targets.
    """
    leaves = dict(_leaves(params))
    adapters = {}
    for path in target_paths(params, lora.targets):
        *lead, fan_in, fan_out = leaves[path].shape
        key = jax.random.fold_in(random_key(seed), zlib.crc32(path.encode()))
        a = jax.random.normal(key, (*lead, fan_in, lora.rank)) * fan_in**-0.5
        adapters[path] = {"a": a, "b": jnp.zeros((*lead, lora.rank, fan_out))}
    return adapters


def merge(params: Params, adapters: Adapters, lora: LoRA, dropout_key: jax.Array | None = None) -> Params:
    """Weights with the adapters added; `params` stay as they are. Where `b` is zero the result equals them bit for bit.

    Args:
        params: weights, nested dict.
        adapters: of `init_adapters`.
        lora: their settings.
        dropout_key: seeds dropout; None switches it off.
    """
    return _add(params, adapters, lora, lora.scale, dropout_key)


def unmerge(params: Params, adapters: Adapters, lora: LoRA) -> Params:
    """The inverse of `merge`, to round-off."""
    return _add(params, adapters, lora, -lora.scale, None)


def _add(params: Params, adapters: Adapters, lora: LoRA, scale: float, dropout_key: jax.Array | None) -> Params:
    def add(path: tuple, leaf: jax.Array) -> jax.Array:
        name = path_string(path)
        if name not in adapters:
            return leaf
        a, b = adapters[name]["a"], adapters[name]["b"]
        if dropout_key is not None and lora.dropout:
            key = jax.random.fold_in(dropout_key, zlib.crc32(name.encode()))
            kept = jax.random.bernoulli(key, 1 - lora.dropout, (*a.shape[:-1], 1))
            a = jnp.where(kept, a / (1 - lora.dropout), 0.0)
        return leaf + (scale * (a @ b)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(add, params)


def _leaves(params: Params) -> list[tuple[str, jax.Array]]:
    return [(path_string(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
