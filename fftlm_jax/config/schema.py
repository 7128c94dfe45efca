"""The sections of a run's config as frozen dataclasses: every key with its type and range, once.

`configs/aligned.py` gives every key a value and a comment; rules between keys are in `config_rules.py`.
"""

import dataclasses
import re

from fftlm_jax.config.limits import (
    above,
    at_least,
    at_most,
    below,
    from_zero_below,
    key,
    one_of,
    within,
)

Cutoff = int | float | str

_MOST = 2**31 - 1  # Of what is counted in int32 on the device.


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    seq_len: int = key(at_least(2), at_most(2**20))
    kernel_len: int = key(at_least(1), at_most(2**20))
    d_model: int = key(at_least(1), at_most(2**16))
    n_layers: int = key(at_least(1), at_most(2**12))
    mixer: str = key(one_of("convolution", "attention"))
    conv_heads: int = key(at_least(1), at_most(2**16))
    kernel_basis: str = key(one_of("cosine", "taps"))
    projections: bool = key()
    attention_heads: int = key(at_least(1), at_most(2**16))
    ffn_mult: float = key(above(0), at_most(2**10))
    chunk: int = key(at_least(1), at_most(2**16))
    memory: str = key(one_of("none", "aligned", "polar"))
    memory_piece: int = key(at_least(2), at_most(2**20))
    conv_method: str = key(one_of("auto", "direct", "fft", "toeplitz"))
    dropout: float = key(from_zero_below(1))
    remat: str = key(one_of("none", "blocks"))
    dtype: str = key(one_of("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    name: str = key(one_of("next_byte", "chunk", "chunk_head"))
    positions: str = key(one_of("boundaries", "last"))
    next_byte_weight: float = key(at_least(0))
    backbone: str = key(one_of("trained", "frozen"))

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
    rule: str = key(one_of("plateau", "schedule", "none"))
    ladder: tuple = key()
    initial: Cutoff = key()
    min_epoch: int = key(at_least(0), at_most(_MOST))
    window: int = key(at_least(2), at_most(2**24))
    threshold: float = key()
    test: str = key(one_of("simple", "confidence"))
    confidence: float = key(at_least(0.5), below(1))
    check_every: int | str = key(
        lambda v: None if v == "epoch" or (isinstance(v, int) and v >= 1) else "must be 'epoch' or a number of steps"
    )
    schedule: tuple = key()
    method: str = key(one_of("cosine", "minimum_phase", "signal"))
    transition_bins: int = key(at_least(1), at_most(2**20))


NAMED_FACTORS = ("sqrt_ratio", "inverse_ratio", "adaptive")


@dataclasses.dataclass(frozen=True)
class LRConfig:
    base: float = key(above(0))
    schedule: str = key(one_of("sawtooth", "cooldown"))
    stages: tuple = key()
    restart: str = key(one_of("tooth", "pulse", "none"))
    factor: float | str = key(
        lambda v: above(0)(v) if not isinstance(v, str) else one_of("a number", *NAMED_FACTORS)(v)
    )
    spike_steps: int = key(at_least(1), at_most(2**24))
    multipliers: tuple = key()
    cooldown: float = key(within(0, 1))


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: str = key(one_of("adamw", "muon"))
    b1: float = key(from_zero_below(1))
    b2: float = key(from_zero_below(1))
    eps: float = key(above(0))
    weight_decay: float = key(at_least(0))
    clip: float = key(above(0))
    ema_decay: float = key(from_zero_below(1))
    adam_scale: float = key(above(0))
    momentum: float = key(from_zero_below(1))
    momentum_warmup: int = key(at_least(0), at_most(_MOST))
    momentum_cooldown: int = key(at_least(0), at_most(_MOST))
    polar: str = key(one_of("polar_express", "ns5", "dion", "gram", "svd"))
    polar_steps: int = key(at_least(1), at_most(64))
    shape: str = key(one_of("keller", "spectral", "rms", "none"))
    neuron_beta2: float = key(from_zero_below(1))
    cautious: bool = key()
    brake: float = key(within(0, 1))
    spectral_lr: float | tuple = key()
    spectral_mode: str = key(one_of("interpolate", "orthogonal", "add", "tangent"))
    spectral_normalize: str = key(one_of("none", "frobenius", "second_moment"))
    spectral_adaptive: str = key(one_of("none", "cosine", "ratio"))
    spectral_span: tuple = key()
    grad_units: float = key(above(0))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    batch_size: int = key(at_least(1), at_most(2**24))
    accum_steps: int = key(at_least(1), at_most(2**20))
    batch_stages: tuple = key()
    steps_per_epoch: int = key(at_least(1), at_most(_MOST))
    epochs: int = key(at_least(1), at_most(_MOST))
    skip_nonfinite: int = key(at_least(0), at_most(_MOST))
    log_every: int = key(at_least(1), at_most(_MOST))


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: int = key(at_least(1), at_most(_MOST))
    before_raise: bool = key()
    batch_size: int = key(at_least(1), at_most(2**24))
    max_bytes: int = key(at_least(0), at_most(2**40))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = key(at_least(1), at_most(_MOST))
    keep_last: int = key(at_least(2), at_most(_MOST))
    keep_best: int = key(at_least(0), at_most(_MOST))
    retries: int = key(at_least(0), at_most(_MOST))


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    prompt: str = key()
    bytes: int = key(at_least(0), at_most(2**24))
    mode: str = key(one_of("byte", "chunk", "speculative"))
    temperature: float = key(at_least(0))
    top_k: int = key(within(0, 256))
    top_p: float = key(within(0, 1), above(0))
    min_p: float = key(within(0, 1))
    repetition_penalty: float = key(above(0))
    repetition_window: int = key(at_least(1), at_most(2**24))
    longest_run: int = key(at_least(0), at_most(2**24))
    ascii_only: bool = key()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = key(one_of("python_stdlib", "files"))
    path: str = key()
    held_out: float = key(above(0), from_zero_below(1))


@dataclasses.dataclass(frozen=True)
class InitConfig:
    checkpoint: str = key()
    epoch: int = key(at_least(0), at_most(_MOST))


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    mode: str = key(one_of("auto", "never", "must"))
    allow: tuple = key()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = key(lambda v: None if v == -1 or v >= 1 else "must be at least 1, or -1 for all devices that are left")
    fsdp: int = key(at_least(1))
    fsdp_min_size: int = key(at_least(1))


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    coordinator: str = key(
        lambda v: None if v in ("", "auto") or re.fullmatch(r".+:\d+", v) else "must be host:port, 'auto' or ''"
    )
    processes: int = key(at_least(1))
    process_id: int = key(at_least(0))
    heartbeat: int = key(at_least(1))


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    start: int = key(at_least(0), at_most(_MOST))
    steps: int = key(at_least(0), at_most(_MOST))


LR_KINDS = ("constant", "exponential", "step", "wsd", "manual", "adaptive")


@dataclasses.dataclass(frozen=True)
class RaftConfig:
    task: str = key(one_of("add", "add_long", "sort", "dyck", "countdown"))
    size: int = key(at_least(1), at_most(2**10))
    reversed_answer: bool = key()
    sft_examples: int = key(at_least(1), at_most(2**24))
    prompts: int = key(at_least(1), at_most(2**24))
    held_out: int = key(at_least(1), at_most(2**24))
    first_level: int = key(at_least(1), at_most(2**10))
    level_rate: float = key(within(0, 1))
    sft_epochs: int = key(at_least(0), at_most(2**20))
    sft_lr: float = key(above(0))
    sft_trained: str = key(one_of("full", "lora"))
    cycles: int = key(at_least(0), at_most(2**16))
    trained: str = key(one_of("full", "lora"))
    lora_rank: int = key(at_least(1), at_most(2**12))
    lora_alpha: float = key(above(0))
    lora_dropout: float = key(from_zero_below(1))
    lora_targets: tuple = key()
    samples: int = key(at_least(1), at_most(2**16))
    temperature: float = key(at_least(0))
    top_p: float = key(within(0, 1), above(0))
    rows: int = key(at_least(1), at_most(2**20))
    filter: str = key(one_of("verified", "random"))
    per_prompt: int = key(at_least(1), at_most(2**16))
    drop_solved: bool = key()
    budget: int | tuple = key()
    start: str = key(one_of("continue", "restart", "merge"))
    anchor: float = key(from_zero_below(1))
    batch_size: int = key(at_least(1), at_most(2**20))
    epochs: int = key(at_least(1), at_most(2**20))
    min_steps: int = key(at_least(1), at_most(2**24))
    max_epochs: int = key(at_least(1), at_most(2**20))
    lr: str = key(one_of(*LR_KINDS))
    lr_base: float = key(above(0))
    lr_unit: str = key(one_of("sft_lr", "absolute"))
    lr_decay: float = key(above(0), within(0, 1))
    lr_every: int = key(at_least(1), at_most(2**16))
    lr_warmup_cycles: int = key(at_least(0), at_most(2**16))
    lr_stable_cycles: int = key(at_least(0), at_most(2**16))
    lr_fall_cycles: int = key(at_least(0), at_most(2**16))
    lr_final: float = key(above(0), within(0, 1))
    lr_rates: tuple = key()
    lr_floor: float = key(at_least(0))
    lr_yaml: str = key()
    warmup: int = key(at_least(0), at_most(2**24))
    decay_within: bool = key()
    score: str = key(one_of("greedy", "sampled"))
    held_out_samples: int = key(at_least(1), at_most(2**16))
    on_regress: str = key(one_of("continue", "rollback", "stop"))
    regress_factor: float = key(above(0), within(0, 1))
    rollbacks: int = key(at_least(0), at_most(2**16))


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. Sections mirror `configs/aligned.py`, where every key is explained."""

    task: str = key(one_of("train", "raft"))
    seed: int = key(within(0, 2**32 - 1))
    compile_cache: str = key()
    model: ModelConfig = key()
    objective: ObjectiveConfig = key()
    curriculum: CurriculumConfig = key()
    lr: LRConfig = key()
    optim: OptimConfig = key()
    train: TrainConfig = key()
    eval: EvalConfig = key()
    checkpoint: CheckpointConfig = key()
    sample: SampleConfig = key()
    data: DataConfig = key()
    init: InitConfig = key()
    resume: ResumeConfig = key()
    mesh: MeshConfig = key()
    distributed: DistributedConfig = key()
    profile: ProfileConfig = key()
    raft: RaftConfig = key()

    @property
    def total_steps(self) -> int:
        return self.train.steps_per_epoch * self.train.epochs


def rule_in_force(curriculum: CurriculumConfig, objective: ObjectiveConfig) -> str:
    """The curriculum's rule: none under a frozen backbone, whose kernels cannot learn what a raise would open."""
    return "none" if objective.is_frozen else curriculum.rule
