"""The model's parameters by name and by group, and the arithmetic that they cost.

Groups go by path and never by rank: stacked gains are 2-D and stacked matrices 3-D, so `ndim == 2` gets both wrong. The
first rule that matches wins, and every parameter must match one.

How much of its devices a run uses (MFU) is the arithmetic that its model needs over what they could do. Counted is what
the mathematics takes, not what a program does: recomputing blocks (`model.remat`) and padding earn nothing.
"""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fftlm_jax.config.schema import Config
from fftlm_jax.config.traits import MIXERS
from fftlm_jax.model.language_model import VOCABULARY, Params
from fftlm_jax.model.mixers import parameter_rules
from fftlm_jax.optim.leaves import path_string

Rules = Sequence[tuple[str, str]]

# (group, regular expression over the whole slash-separated path).
_RULES: Rules = (
    ("mlp", r"blocks/mlp/w_\w+/kernel"),
    ("head", r"head/kernel"),
    ("embedding", r"embed/embedding"),
    ("norm", r"(.*/)?\w*norm/scale"),
    ("memory", r"memory/(rho|theta|w_read/kernel)"),
)

# Matrices of linear maps inside the blocks: Muon's.
MUON_GROUPS = frozenset({"mixer", "attention", "mlp"})
# Weight decay acts on those and the head: not on embeddings (rows of rare bytes would fade), kernels, gains, norms and
# memory.
DECAYED_GROUPS = MUON_GROUPS | {"head"}


def group_of(path: str) -> str | None:
    """Group of a parameter by its slash-separated path, or None; below a mixer, by the rules of the mixers."""
    rules = [*((group, f"blocks/mixer/({pattern})") for group, pattern in parameter_rules()), *_RULES]
    return next((group for group, pattern in rules if re.fullmatch(pattern, path)), None)


def label_params(params: Any) -> Any:
    """Tree of group names with the structure of `params`.

    Raises:
        ValueError: naming every parameter that no rule covers.
    """
    orphans: list[str] = []

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        del leaf
        group = group_of(path_string(path))
        if group is None:
            orphans.append(path_string(path))
        return group or ""

    labels = jax.tree_util.tree_map_with_path(label, params)
    if orphans:
        raise ValueError(f"no routing rule covers the parameters {', '.join(orphans)}")
    return labels


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


# Dense bfloat16 FLOP/s of one device by what jax calls it; the first name that occurs counts. From the makers' data
# sheets: NVIDIA's of H100, H200 and A100 (without sparsity), Google Cloud's pages on each TPU version.
_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),  # v5p
    ("TPU v6", 918e12),  # v6e
)


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a device in dense bfloat16 products, or None where that is not known, as of any CPU."""
    return next((peak for name, peak in _PEAKS if name.lower() in device_kind.lower()), None)


def flops_per_byte(config: Config, params: Params) -> float:
    """FLOPs that training on one byte of text takes.

    A product with a matrix of n entries takes 2 n forward, 2 n for the gradient of its input and 2 n for its own: 6 N,
    with N the matrices of the blocks and the byte heads. The next-byte head (D x 256) acts at each position; the chunk
    head, C times as large, at one of C. A convolution of K taps is K products per channel, hence 6 K D a layer; causal
    attention multiplies with T / 2 keys and as many values, 6 T D. A frozen backbone is only run forward.
    """
    model, objective = config.model, config.objective
    groups = zip(jax.tree.leaves(label_params(params)), jax.tree.leaves(params), strict=True)
    matrices = sum(leaf.size for group, leaf in groups if group in MUON_GROUPS)
    reach = min(MIXERS[model.mixer].reach(model), model.seq_len)
    blocks = matrices + model.n_layers * model.d_model * reach
    heads = model.d_model * VOCABULARY * (2 if objective.has_chunks else 1)
    if objective.is_last_only:
        heads = model.d_model * VOCABULARY * (1 + model.chunk) / model.seq_len
    return (2 if objective.is_frozen else 6) * blocks + 6 * heads


def utilisation(config: Config, params: Params, bytes_per_second: float) -> float | None:
    """The part of the bfloat16 peak of all devices of a run, in [0, 1], that this speed uses; None where unknown."""
    devices = jax.tree.leaves(params)[0].sharding.device_set
    peak = peak_flops(next(iter(devices)).device_kind)
    return peak and flops_per_byte(config, params) * bytes_per_second / (peak * len(devices))


def group_sizes(params: Any) -> Mapping[str, int]:
    """Parameters of every group."""
    sizes = collections.Counter()
    for group, leaf in zip(jax.tree.leaves(label_params(params)), jax.tree.leaves(params), strict=True):
        sizes[group] += leaf.size
    return sizes
