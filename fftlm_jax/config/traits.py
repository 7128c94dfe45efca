"""What the rest of the system must know of a mixer or an optimizer without building it: size, reach, groups, limits.

A mixer is one entry here and one module in `model/mixers.py`, whose `register_mixer` adds one from elsewhere. An
optimizer is one entry here and one in `training/optimizer.py`, whose `register_optimizer` adds one from elsewhere.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

_LARGEST_KERNELS = 2**26  # Taps of a layer: they are made in float64, also where a model is only described.
_LARGEST_SCORES = 2**38  # Numbers that attention compares positions with, of a layer and a micro-batch.

ModelSection = Any  # `keys_model.ModelConfig`, which asks this file for names.


def _no_faults(model: ModelSection) -> Iterator[str]:
    del model
    yield from ()


@dataclasses.dataclass(frozen=True)
class MixerTraits:
    """Facts of a mixer as functions of the section `model` of a config.

    Attributes:
        words: what it is, after "layers of causal", in the README of an exported model.
        parameters: of one layer.
        reach: positions that one layer combines, the present one among them; infinite where there is no limit.
        masks_parameters: whether a cutoff of method "cosine" switches off parameters themselves (`spectrum`), so that a
            model trained under it needs no filter to be used.
        has_kernels: whether there is anything that a cutoff acts on; without it there can be no curriculum.
        group: of its matrices, for the optimizer: "mixer" or "attention".
        faults: what is wrong between its keys, in sentences.
        batch_fault: what is wrong with so many windows at once, without the key in front; "" if nothing.
    """

    words: str
    parameters: Callable[[ModelSection], int]
    reach: Callable[[ModelSection], float]
    masks_parameters: Callable[[ModelSection], bool] = lambda model: False
    has_kernels: bool = False
    group: str = "mixer"
    faults: Callable[[ModelSection], Iterator[str]] = _no_faults
    batch_fault: Callable[[ModelSection, int], str] = lambda model, windows: ""


def _convolution_parameters(m: ModelSection) -> int:
    return m.conv_heads * m.kernel_len + m.d_model + (3 * m.d_model**2 if m.projections else 0)


def _convolution_faults(m: ModelSection) -> Iterator[str]:
    if m.d_model % m.conv_heads:
        yield f"config.model.conv_heads: {m.conv_heads} heads do not divide d_model {m.d_model}; choose a divisor."
    if m.conv_method == "fft" and m.dtype == "bfloat16":
        yield "config.model.dtype: there is no FFT in bfloat16; use conv_method 'toeplitz' or dtype 'float32'."
    if m.conv_heads * m.kernel_len > _LARGEST_KERNELS:
        yield (
            f"config.model.kernel_len: {m.conv_heads} heads of {m.kernel_len} taps are more than {_LARGEST_KERNELS} "
            "taps in a layer; lower it or conv_heads."
        )


def _attention_faults(m: ModelSection) -> Iterator[str]:
    if m.d_model % (2 * m.attention_heads):
        yield (
            f"config.model.attention_heads: {m.attention_heads} heads do not divide d_model {m.d_model} into even "
            "widths, which rotary embeddings need; choose another number."
        )
    if not m.projections:
        yield "config.model.projections: attention is made of projections; set it to True."


def _attention_batch_fault(m: ModelSection, windows: int) -> str:
    scores = windows * m.attention_heads * m.seq_len**2
    if scores <= _LARGEST_SCORES:
        return ""
    too_many = f"attention compares {scores:.1e} pairs of positions at once, more than {_LARGEST_SCORES:.1e}"
    return f"{too_many}; lower it or model.seq_len."


MIXERS: dict[str, MixerTraits] = {
    "convolution": MixerTraits(
        words="convolutions",
        parameters=_convolution_parameters,
        reach=lambda m: m.kernel_len,
        masks_parameters=lambda m: m.kernel_basis == "cosine",
        has_kernels=True,
        faults=_convolution_faults,
    ),
    "attention": MixerTraits(
        words="attention",
        parameters=lambda m: 4 * m.d_model**2,
        reach=lambda m: math.inf,
        group="attention",
        faults=_attention_faults,
        batch_fault=_attention_batch_fault,
    ),
}


@dataclasses.dataclass(frozen=True)
class OptimizerTraits:
    """Facts of an optimizer.

    Attributes:
        keys: those of section `optim` that it alone looks at; they must be neutral under another one.
        needs_matrices: whether it has nothing to do where no matrix of a block is trained: under a frozen backbone.
        depends_on_length: whether its update depends on how many steps there will be.
    """

    keys: tuple[str, ...] = ()
    needs_matrices: bool = False
    depends_on_length: bool = False


OPTIMIZERS: dict[str, OptimizerTraits] = {
    "adamw": OptimizerTraits(),
    "muon": OptimizerTraits(keys=("spectral_lr", "brake", "neuron_beta2"), needs_matrices=True, depends_on_length=True),
}
