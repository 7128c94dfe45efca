"""The config of a run: every key with its type, default, meaning, range, and what a resumed run may do with it.

Each stands once, in its section in `keys_model.py`, `keys_run.py` or `keys_raft.py`. `configs/aligned.py` lists all of
them for people; a test holds that list equal. Rules between keys are in `rules.py`. Configs are frozen and hashable, so
that they can be static arguments of compiled functions; `ModelConfig()` has the defaults.

Plain dataclasses and not pydantic: a config is read before jax is imported, so that a mistyped key is answered at once,
and importing pydantic would add 0.2 s to the 0.3 s that this takes; nearest names, all rules between keys and what a
resume may do would remain ours to write.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from fftlm_jax.config.keys_model import CurriculumConfig, LRConfig, ModelConfig, ObjectiveConfig, OptimConfig
from fftlm_jax.config.keys_raft import RaftConfig
from fftlm_jax.config.keys_run import (
    CheckpointConfig,
    DataConfig,
    DistributedConfig,
    EvalConfig,
    InitConfig,
    MeshConfig,
    ProfileConfig,
    ResumeConfig,
    SampleConfig,
    TrainConfig,
)
from fftlm_jax.config.limits import ASKED, FIXED, FREE, key, one_of, within


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. Sections mirror `configs/aligned.py`, where every key is explained."""

    task: str = key(
        "train",
        "What is run: train (a language model on a corpus) or raft (reward-ranked fine-tuning, section raft).",
        one_of("train", "raft"),
        resume=FIXED,
    )
    seed: int = key(0, "Seed of initialisation, data order, dropout and samples.", within(0, 2**32 - 1))
    compile_cache: str = key(
        "auto",
        'Where compiled programs are kept: auto (~/.cache/fftlm_jax/...), a folder, or "" for nowhere.',
        resume=FREE,
    )
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    lr: LRConfig = LRConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    sample: SampleConfig = SampleConfig()
    data: DataConfig = DataConfig()
    init: InitConfig = InitConfig()
    resume: ResumeConfig = ResumeConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    profile: ProfileConfig = ProfileConfig()
    raft: RaftConfig = RaftConfig()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.train.steps_per_epoch * self.train.epochs


def rule_in_force(curriculum: CurriculumConfig, objective: ObjectiveConfig) -> str:
    """The curriculum's rule: none under a frozen backbone, whose kernels cannot learn what a raise would open."""
    return "none" if objective.is_frozen else curriculum.rule


def keys(cls: type = Config, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Every key of a config, or of a section, by its dotted name."""
    found: dict[str, dataclasses.Field] = {}
    for name, section in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(section):
            found |= keys(section, f"{prefix}{name}.")
    return found | {prefix + field.name: field for field in dataclasses.fields(cls) if "checks" in field.metadata}


def with_later_keys(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with the keys of its sections that came after it, at their defaults."""
    filled = dict(saved)
    for name, field in keys().items():
        section, _, own = name.rpartition(".")
        if field.metadata["is_later"] and isinstance(filled.get(section), Mapping):
            filled[section] = {own: field.default, **filled[section]}
    return filled


def resume_policy(name: str) -> str:
    """What a resumed run may do with a key: `FREE`, `ASKED` or `FIXED`.

    Of a key that this version does not have: `FIXED` where its section is, else `ASKED`.
    """
    section, _, key_name = name.rpartition(".")
    cls = typing.get_type_hints(Config).get(section, Config)
    field = cls.__dataclass_fields__.get(key_name)
    of_section = getattr(cls, "on_resume", ASKED)
    if field is None:
        return FIXED if of_section == FIXED else ASKED
    return field.metadata.get("resume") or of_section
