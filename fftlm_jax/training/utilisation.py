"""How much of its devices a run uses: the arithmetic that its model needs over what they could do (MFU).

Counted is what the mathematics takes, not what a program does: recomputing blocks (`model.remat`) and padding earn
nothing.
"""

import jax

from fftlm_jax.config import Config
from fftlm_jax.model import VOCABULARY
from fftlm_jax.model.language_model import Params
from fftlm_jax.optim import MUON_GROUPS, label_params

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
    reach = model.kernel_len if model.mixer == "convolution" else model.seq_len
    blocks = matrices + model.n_layers * model.d_model * min(reach, model.seq_len)
    heads = model.d_model * VOCABULARY * (2 if objective.has_chunks else 1)
    if objective.is_last_only:
        heads = model.d_model * VOCABULARY * (1 + model.chunk) / model.seq_len
    return (2 if objective.is_frozen else 6) * blocks + 6 * heads


def utilisation(config: Config, params: Params, bytes_per_second: float) -> float | None:
    """The part of the bfloat16 peak of all devices of a run, in [0, 1], that this speed uses; None where unknown."""
    devices = jax.tree.leaves(params)[0].sharding.device_set
    peak = peak_flops(next(iter(devices)).device_kind)
    return peak and flops_per_byte(config, params) * bytes_per_second / (peak * len(devices))
