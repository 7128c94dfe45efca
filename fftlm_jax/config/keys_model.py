"""The keys of the model, its objective and its curriculum, the learning rate and the optimizer."""

import dataclasses
from typing import ClassVar

from fftlm_jax.config.limits import (
    ASKED,
    FIXED,
    FREE,
    above,
    at_least,
    at_most,
    below,
    between,
    entry_of,
    from_zero_below,
    key,
    one_of,
    within,
)
from fftlm_jax.config.traits import MIXERS, OPTIMIZERS
from fftlm_jax.runtime.matrix_units import automatic_dtype

Cutoff = int | float | str

_MOST = 2**31 - 1  # Of what is counted in int32 on the device.


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of the model."""

    on_resume: ClassVar[str] = FIXED
    seq_len: int = key(1024, "Bytes of a training window (T).", between(2, 2**20))
    kernel_len: int = key(128, "Taps of a convolution kernel (K).", between(1, 2**20))
    d_model: int = key(512, "Width of the residual stream (D).", between(1, 2**16))
    n_layers: int = key(6, "Number of blocks.", between(1, 2**12))
    mixer: str = key(
        "convolution",
        "What mixes time: convolution, or attention (rotary, causal; the baseline).",
        entry_of(MIXERS),
    )
    conv_heads: int = key(8, "Kernels per layer (H); must divide d_model.", between(1, 2**16))
    kernel_basis: str = key(
        "cosine",
        "What the parameters of a kernel are: its cosine spectrum (cosine), or its taps.",
        one_of("cosine", "taps"),
    )
    projections: bool = key(
        True, "Whether a mixer projects its input, gate and output; False is the source's plain block."
    )
    attention_heads: int = key(
        8, 'Heads of mixer "attention"; d_model over their number must be even.', between(1, 2**16)
    )
    ffn_mult: float = key(
        2.0, "Hidden width of the feed-forward layer, in multiples of d_model.", above(0), at_most(2**10)
    )
    chunk: int = key(16, "Bytes that the head predicts at once (C); must divide seq_len.", between(1, 2**16))
    memory: str = key(
        "none",
        "Spectral memory beside the blocks: none, aligned or polar (see model/spectral_memory.py).",
        one_of("none", "aligned", "polar"),
    )
    memory_piece: int = key(16, "Bytes whose spectrum the memory takes in at a time.", between(2, 2**20))
    conv_method: str = key(
        "auto",
        "How convolutions are computed: auto, toeplitz, fft or direct; all are equal to round-off.",
        one_of("auto", "direct", "fft", "toeplitz"),
        resume=ASKED,
    )
    dropout: float = key(
        0.0, "Chance that an output of a block's branches is dropped in a step.", from_zero_below(1), resume=ASKED
    )
    remat: str = key(
        "none",
        "What the backward pass computes again: none, or all inner results of the blocks (blocks).",
        one_of("none", "blocks"),
        resume=FREE,
    )
    dtype: str = key(
        "auto",
        "Type of the matrix products: float32, bfloat16, or auto; weights, sums and losses are always float32.",
        one_of("auto", "float32", "bfloat16"),
    )
    precision: str = key(
        "default",
        "How float32 products are multiplied: default (bfloat16 on TPU, TF32 on GPU), high or highest (float32).",
        one_of("default", "high", "highest"),
        resume=ASKED,
        is_later=True,
    )

    def dtype_on(self, platform: str) -> str:
        """What `dtype` is on a platform: bfloat16 by itself where there are units for it, and no FFT is asked for."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if self.conv_method == "fft" else automatic_dtype(platform)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned: the loss, and which weights are trained by it."""

    name: str = key(
        "chunk",
        "What is learned: next_byte, chunk (C bytes at each boundary), or chunk_head (that on a trained model).",
        one_of("next_byte", "chunk", "chunk_head"),
    )
    positions: str = key(
        "boundaries",
        "Where chunks are predicted: at all boundaries, or at the last one only (the original).",
        one_of("boundaries", "last"),
    )
    next_byte_weight: float = key(1.0, "Weight of the next-byte loss beside the chunk loss.", at_least(0))
    backbone: str = key(
        "trained",
        "Under chunk_head: all is trained, or the head alone (frozen; needs init.checkpoint).",
        one_of("trained", "frozen"),
        resume=FIXED,
    )

    @property
    def has_chunks(self) -> bool:
        """Whether the whole head is trained and scored, not the next-byte slice alone."""
        return self.name != "next_byte"

    @property
    def is_last_only(self) -> bool:
        """Whether only the last position of a window is trained on."""
        return self.has_chunks and self.positions == "last"

    @property
    def is_frozen(self) -> bool:
        """Whether the head alone is trained."""
        return self.name == "chunk_head" and self.backbone == "frozen"


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """When the cutoff is raised, along which ladder, and how it acts on kernels."""

    rule: str = key(
        "plateau",
        "When the cutoff is raised: plateau, schedule (by epoch), or none (full band from the start).",
        one_of("plateau", "schedule", "none"),
    )
    ladder: tuple = key(
        (128, 256, 512, "full"), 'Cutoffs to climb: bins (int), fractions of Nyquist (float) or "full".'
    )
    initial: Cutoff = key("first", 'Cutoff at step 0: "first" for the first rung, or a cutoff.')
    min_epoch: int = key(2, "Whole epochs that must be done before the first raise.", between(0, _MOST))
    window: int = key(50, "Losses that the plateau rule looks at, one per optimizer step; even.", between(2, 2**24))
    threshold: float = key(0.005, "Relative improvement below which the loss has plateaued.")
    test: str = key(
        "simple",
        "What is held against the threshold: the improvement (simple), or its upper bound (confidence).",
        one_of("simple", "confidence"),
    )
    confidence: float = key(
        0.95,
        'Under test "confidence": the chance, at each check, not to raise too soon (one-sided).',
        at_least(0.5),
        below(1),
    )
    check_every: int | str = key(
        "epoch",
        'Steps between checks of the plateau rule, or "epoch".',
        lambda v: None if v == "epoch" or (isinstance(v, int) and v >= 1) else "must be 'epoch' or a number of steps",
    )
    schedule: tuple = key(
        ((0, 128), (2, 256), (5, 512), (10, "full")), 'Rows (first epoch, cutoff) of rule "schedule".'
    )
    method: str = key(
        "cosine",
        "How the cutoff acts: cosine, minimum_phase, or signal (sees the future: refused unless harmless).",
        one_of("cosine", "minimum_phase", "signal"),
    )
    transition_bins: int = key(32, "Width of the band edge under minimum_phase, in bins.", between(1, 2**20))


@dataclasses.dataclass(frozen=True)
class LRConfig:
    """The learning rate: its course, and its answer to a raise."""

    base: float = key(0.0002, "Peak learning rate.", above(0))
    schedule: str = key(
        "sawtooth",
        "Course of the rate: sawtooth, or cooldown (equal stages, then down to a tenth; no events).",
        one_of("sawtooth", "cooldown"),
        resume=FIXED,
    )
    stages: tuple = key(
        ((2, 1.0, 0.1), (3, 1.0, 0.1), ("rest", 1.0, 0.05)),
        "Stages of the sawtooth: (epochs, peak, floor), the last two in multiples of base.",
    )
    restart: str = key(
        "tooth",
        "Answer to a raise: tooth (a new cosine from the peak), pulse (the peak for one step) or none.",
        one_of("tooth", "pulse", "none"),
    )
    factor: float | str = key(
        1.0,
        "Multiplied into the rate for good at a raise: a number, sqrt_ratio, inverse_ratio or adaptive.",
        lambda v: (
            above(0)(v) if not isinstance(v, str) else one_of("a number", "sqrt_ratio", "inverse_ratio", "adaptive")(v)
        ),
    )
    spike_steps: int = key(10, 'Losses on either side of a raise that factor "adaptive" compares.', between(1, 2**24))
    multipliers: tuple = key((1.0, 1.52, 1.73), "Rates of the stages of the cooldown, in multiples of base.")
    cooldown: float = key(0.55, "Fraction of training that the fall at the end of the cooldown takes.", within(0, 1))


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer."""

    name: str = key(
        "adamw",
        "The optimizer: adamw, or muon (Muon for the matrices of the blocks, AdamW for everything else).",
        entry_of(OPTIMIZERS),
        resume=FIXED,
    )
    b1: float = key(0.9, "Decay of AdamW's first moment.", from_zero_below(1))
    b2: float = key(0.95, "Decay of AdamW's second moment.", from_zero_below(1))
    eps: float = key(1e-08, "Added to the root of AdamW's second moment.", above(0))
    weight_decay: float = key(0.0005, "Decoupled weight decay, on matrices only.", at_least(0))
    clip: float = key(1.0, "Global gradient norm beyond which gradients are scaled down.", above(0))
    ema_decay: float = key(
        0.0,
        "Decay of an average of the weights, evaluated beside them (ema_bpb); 0 for none.",
        from_zero_below(1),
        resume=FIXED,
    )
    adam_scale: float = key(0.15, "AdamW's learning rate beside Muon, in multiples of Muon's.", above(0))
    momentum: float = key(
        0.95, "Muon's momentum (Nesterov) of the gradients before the polar factor.", from_zero_below(1)
    )
    momentum_warmup: int = key(0, "First steps in which Muon's momentum rises from 0.85.", between(0, _MOST))
    momentum_cooldown: int = key(0, "Last steps in which Muon's momentum falls back to 0.85.", between(0, _MOST))
    polar: str = key(
        "polar_express",
        "How the polar factor is found: polar_express, ns5, dion, gram or svd (exact, slow).",
        one_of("polar_express", "ns5", "dion", "gram", "svd"),
    )
    polar_steps: int = key(5, "Iterations for the polar factor.", between(1, 64))
    polar_dtype: str = key(
        "auto",
        "Type of the products for the polar factor: float32, bfloat16, or auto.",
        one_of("auto", "float32", "bfloat16"),
        is_later=True,
    )
    shape: str = key(
        "keller",
        "Scale of updates by shape: keller max(1, out/in)^0.5, spectral (out/in)^0.5, rms or none.",
        one_of("keller", "spectral", "rms", "none"),
    )
    neuron_beta2: float = key(
        0.0, "Decay of NorMuon's second moment per neuron; 0 for none.", from_zero_below(1), resume=FIXED
    )
    cautious: bool = key(
        True, "Whether Muon's weight decay acts only where the update shrinks the weight anyway.", resume=FIXED
    )
    brake: float = key(
        1.0, "Factor on the part of a step that lengthens a matrix: 1 for none, 0.5 is the radial brake.", within(0, 1)
    )
    spectral_lr: float | tuple = key(0.0, "How much of the gradient's radial part is given back (alpha); 0 is Muon.")
    spectral_mode: str = key(
        "interpolate",
        "How the radial part is given back: interpolate, orthogonal, add or tangent (see optim/with_spectral.py).",
        one_of("interpolate", "orthogonal", "add", "tangent"),
    )
    spectral_normalize: str = key(
        "none",
        "Units of the radial part: those of the gradient (none), or none at all (frobenius, second_moment).",
        one_of("none", "frobenius", "second_moment"),
        resume=FIXED,
    )
    spectral_adaptive: str = key(
        "none",
        "Whether alpha follows the alignment: none, by its cosine, or by rho (ratio).",
        one_of("none", "cosine", "ratio"),
        resume=FIXED,
    )
    spectral_span: tuple = key((0.0, 1.0), "Fractions of training between which alpha acts.")
    grad_units: float = key(1.0, "Units that alpha was tuned in, over those of a mean loss.", above(0))
