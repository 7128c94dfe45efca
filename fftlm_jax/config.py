"""The config of a run as frozen dataclasses, and the reader that turns a ConfigDict into them.

Every key is declared here once, with its type and range; `configs/aligned.py` gives every key a value and a comment.
Rules between keys are in `config_rules.py`. All faults are collected and reported together, one sentence each.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from fftlm_jax.config_checks import Check, above, at_least, below, from_zero_below, key, nearest, one_of, within
from fftlm_jax.errors import ConfigError

Cutoff = int | float | str


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    seq_len: int = key(at_least(2))
    kernel_len: int = key(at_least(1))
    d_model: int = key(at_least(1))
    n_layers: int = key(at_least(1))
    mixer: str = key(one_of("convolution", "attention"))
    conv_heads: int = key(at_least(1))
    kernel_basis: str = key(one_of("cosine", "taps"))
    projections: bool = key()
    attention_heads: int = key(at_least(1))
    ffn_mult: float = key(above(0))
    chunk: int = key(at_least(1))
    memory: str = key(one_of("none", "aligned", "polar"))
    memory_piece: int = key(at_least(2))
    conv_method: str = key(one_of("auto", "direct", "fft", "toeplitz"))
    dropout: float = key(from_zero_below(1))
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
    min_epoch: int = key(at_least(0))
    window: int = key(at_least(2))
    threshold: float = key()
    test: str = key(one_of("simple", "confidence"))
    confidence: float = key(at_least(0.5), below(1))
    check_every: int | str = key(
        lambda v: None if v == "epoch" or (isinstance(v, int) and v >= 1) else "must be 'epoch' or a number of steps"
    )
    schedule: tuple = key()
    method: str = key(one_of("cosine", "minimum_phase", "signal"))
    transition_bins: int = key(at_least(1))


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
    spike_steps: int = key(at_least(1))
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
    momentum_warmup: int = key(at_least(0))
    momentum_cooldown: int = key(at_least(0))
    polar: str = key(one_of("polar_express", "ns5", "dion", "gram", "svd"))
    polar_steps: int = key(at_least(1))
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
    batch_size: int = key(at_least(1))
    accum_steps: int = key(at_least(1))
    batch_stages: tuple = key()
    steps_per_epoch: int = key(at_least(1))
    epochs: int = key(at_least(1))
    log_every: int = key(at_least(1))


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: int = key(at_least(1))
    before_raise: bool = key()
    batch_size: int = key(at_least(1))
    max_bytes: int = key(at_least(0))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = key(at_least(1))
    keep_last: int = key(at_least(2))
    keep_best: int = key(at_least(0))


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    prompt: str = key()
    bytes: int = key(at_least(0))
    mode: str = key(one_of("byte", "chunk", "speculative"))
    temperature: float = key(at_least(0))
    top_k: int = key(within(0, 256))
    top_p: float = key(within(0, 1), above(0))
    min_p: float = key(within(0, 1))
    repetition_penalty: float = key(above(0))
    repetition_window: int = key(at_least(1))
    longest_run: int = key(at_least(0))
    ascii_only: bool = key()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = key(one_of("python_stdlib", "files"))
    path: str = key()
    held_out: float = key(above(0), from_zero_below(1))


@dataclasses.dataclass(frozen=True)
class InitConfig:
    checkpoint: str = key()
    epoch: int = key(at_least(0))


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    mode: str = key(one_of("auto", "never", "must"))
    allow: tuple = key()


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    start: int = key(at_least(0))
    steps: int = key(at_least(0))


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. Sections mirror `configs/aligned.py`, where every key is explained."""

    seed: int = key(within(0, 2**32 - 1))
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
    profile: ProfileConfig = key()

    @property
    def total_steps(self) -> int:
        return self.train.steps_per_epoch * self.train.epochs


def rule_in_force(curriculum: CurriculumConfig, objective: ObjectiveConfig) -> str:
    """The curriculum's rule: none under a frozen backbone, whose kernels cannot learn what a raise would open."""
    return "none" if objective.is_frozen else curriculum.rule


def read_config(values: Mapping[str, Any], *, with_data: bool = True) -> Config:
    """Checks names, types and ranges of a (possibly nested ConfigDict) mapping and freezes it.

    Args:
        values: every key of `configs/aligned.py`.
        with_data: whether the corpus must be there; a saved model can be used without it.

    Raises:
        ConfigError: with every fault found, including those of the rules between keys.
    """
    from fftlm_jax.config_rules import faults_between_keys  # Imported late: the rules need the classes above.

    faults: list[str] = []
    sections = _read_keys(Config, values, "", faults)
    faults += faults_between_keys(sections, with_data)
    if faults:
        raise ConfigError(faults)
    return Config(**sections)


def read_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The section `model` alone, checked as `read_config` checks it.

    Raises:
        ConfigError: with every fault found.
    """
    from fftlm_jax.config_rules import faults_between_keys

    faults: list[str] = []
    model = _read_section(ModelConfig, values, "model.", faults)
    faults += faults_between_keys({"model": model})
    if faults:
        raise ConfigError(faults)
    return model


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config, as `config.json` stores it (tuples become lists there)."""
    return dataclasses.asdict(config)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) wherever two nested dicts differ; a missing key reads as None."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found.update(differences(a, b, f"{prefix}{name}."))
        elif _as_lists(a) != _as_lists(b):
            found[prefix + name] = (a, b)
    return found


def _read_section(cls: type, values: Any, path: str, faults: list[str]) -> Any:
    """The dataclass of a section, or None if anything about it is wrong."""
    before = len(faults)
    read = _read_keys(cls, values, path, faults)
    return cls(**read) if len(faults) == before else None


def _read_keys(cls: type, values: Any, path: str, faults: list[str]) -> dict[str, Any]:
    """The keys of a section that are there, None for those that are wrong; adds to `faults`."""
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        faults.append(f"config.{path.rstrip('.')}: must be a section of keys, not {values!r}; set its keys one by one.")
        return {}
    hints, given, known = typing.get_type_hints(cls), dict(values.items()), {f.name: f for f in dataclasses.fields(cls)}
    for name in given:
        if name not in known:
            faults.append(f"config.{path}{name}: there is no such key{nearest(name, known)}; see configs/aligned.py.")
    missing = [name for name in known if name not in given]
    if missing:
        faults.append(
            f"config.{path.rstrip('.') or 'root'}: lacks {', '.join(missing)}; start from configs/aligned.py and "
            "override single keys (--config.section.key=value), never a whole section."
        )
    read: dict[str, Any] = {}
    for name, field in known.items():
        if name not in given:
            continue
        if dataclasses.is_dataclass(hints[name]):
            read[name] = _read_section(hints[name], given[name], f"{path}{name}.", faults)
        else:
            read[name] = _read_value(given[name], hints[name], field.metadata["checks"], f"config.{path}{name}", faults)
    return read


def _read_value(value: Any, hint: Any, checks: tuple[Check, ...], name: str, faults: list[str]) -> Any:
    wanted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, list) and tuple in wanted:
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if isinstance(value, int) and not isinstance(value, bool) and float in wanted and int not in wanted:
        value = float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        names = " or ".join(t.__name__ for t in wanted)
        faults.append(f"{name}: must be {names}, not {value!r} ({type(value).__name__}).")
        return None
    if isinstance(value, float) and not math.isfinite(value):
        faults.append(f"{name}: must be finite, not {value}.")
        return None
    for check in checks:
        fault = check(value)
        if fault:
            faults.append(f"{name}: {fault}, not {value!r}.")
            return None
    return value


def _as_lists(value: Any) -> Any:
    return [_as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
