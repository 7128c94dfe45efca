"""Builds the parts of a fine-tuning run from its config: task, pools, schedule, adapters, optimizers, first weights."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh

from fftlm_jax.checkpoints.saved_run import load_weights
from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.config.limits import nearest
from fftlm_jax.config.schema import Config
from fftlm_jax.generation import SamplingConfig
from fftlm_jax.model import build, init_params
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.lora import LoRA, target_paths
from fftlm_jax.optim import scale_by_given_learning_rate
from fftlm_jax.parallel import make_mesh
from fftlm_jax.raft.cycle_lr import CycleLR, Knobs
from fftlm_jax.raft.lr_yaml import LONGEST_YAML, from_yaml, number
from fftlm_jax.raft.tasks import TASKS, Pools, Task, make_pools, make_task
from fftlm_jax.runtime.errors import ConfigError
from fftlm_jax.runtime.paths import local_path
from fftlm_jax.runtime.untrusted import read_bounded, shown
from fftlm_jax.training.optimizer import build_optimizer


def task_of(config: Config) -> tuple[Task, Pools]:
    """The task and its three disjoint pools of problems.

    Raises:
        ConfigError: for a size that the task does not have, pools that it cannot fill, or texts longer than a window.
    """
    raft = config.raft
    if raft.task not in TASKS:
        known = f"must be one of {', '.join(TASKS)}{nearest(raft.task, TASKS)}"
        raise ConfigError([f"config.raft.task: {known}, not {shown(raft.task)}."])
    try:
        task = make_task(raft.task, raft.size, raft.reversed_answer)
    except ValueError as error:
        raise ConfigError([f"config.raft.size: {error}"]) from None
    width = task.longest_prompt + task.longest_answer
    if width > config.model.seq_len:
        raise ConfigError(
            [f"config.model.seq_len: a question and its answer take {width} bytes, more than a window; raise it."]
        )
    try:
        pools = make_pools(
            task,
            sft=raft.sft_examples,
            raft=raft.prompts,
            held_out=raft.held_out,
            seed=config.seed,
            sft_level=raft.first_level,
        )
    except ValueError as error:
        keys = "raft.sft_examples, raft.prompts, raft.held_out and raft.first_level"
        raise ConfigError([f"config.raft.prompts: {error} (sft, raft, held_out and sft_level are {keys})"]) from None
    levels = {task.level(problem.prompt) for problem in pools.raft}
    missing = [level for level in range(min(raft.first_level + 1, task.levels), task.levels + 1) if level not in levels]
    if missing:
        raise ConfigError(
            [f"config.raft.prompts: {raft.prompts} hold none of level {missing[0]}; take more, or lower raft.size."]
        )
    return task, pools


def _is_yaml_line(source: str) -> bool:
    return ":" in source and "://" not in source and not source.startswith("~")


def with_yaml_text(config: Config) -> Config:
    """The config with the text of the file that `raft.lr_yaml` names in place of its path: the run's own from now on.

    Raises:
        ConfigError: if it cannot be read.
    """
    source = config.raft.lr_yaml
    if not source or "\n" in source or (_is_yaml_line(source) and not Path(source).is_file()):
        return config
    try:
        text = read_bounded(local_path(source, "config.raft.lr_yaml"), LONGEST_YAML).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else reason
        raise ConfigError([f"config.raft.lr_yaml: {source} cannot be read ({reason}); name a file."]) from None
    return dataclasses.replace(config, raft=dataclasses.replace(config.raft, lr_yaml=text))


def schedule_of(config: Config) -> CycleLR:
    """The learning rate of every cycle; of a YAML schedule, that in `raft.lr_yaml`, read by `with_yaml_text`.

    Raises:
        ConfigError: for a schedule that makes no sense.
    """
    raft = config.raft
    if raft.lr_yaml:
        try:
            schedule = from_yaml(raft.lr_yaml)
        except ValueError as error:
            raise ConfigError([f"config.raft.lr_yaml: {error}."]) from None
        return dataclasses.replace(schedule, floor=max(schedule.floor, raft.lr_floor))
    base = raft.lr_base * (raft.sft_lr if raft.lr_unit == "sft_lr" else 1.0)
    try:
        return CycleLR(
            kind=raft.lr,
            base=base,
            decay=raft.lr_decay,
            every=raft.lr_every,
            warmup=raft.lr_warmup_cycles,
            stable=raft.lr_stable_cycles,
            fall=raft.lr_fall_cycles,
            final=raft.lr_final,
            rates=tuple(number(rate, "lr_rates") for rate in raft.lr_rates),
            floor=raft.lr_floor,
        )
    except ValueError as error:
        raise ConfigError([f"config.raft.lr: {error}."]) from None


def lora_of(config: Config) -> LoRA:
    """The adapters' settings.

    Raises:
        ConfigError: naming a target that the model does not have, where adapters are trained.
    """
    raft = config.raft
    lora = LoRA(raft.lora_rank, raft.lora_alpha, raft.lora_dropout, raft.lora_targets)
    if "lora" in (raft.trained, raft.sft_trained):
        try:
            target_paths(build(config.model)[1], lora.targets)
        except ValueError as error:
            raise ConfigError([f"config.raft.lora_targets: {error}."]) from None
    return lora


def optimizer_of(config: Config, trained: str, steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW without decay for adapters (it would pull them back to where they started); `optim` for all weights."""
    optim, rate = config.optim, scale_by_given_learning_rate()
    if trained == "full":
        return build_optimizer(optim, rate, steps)
    adam = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    return optax.chain(optax.clip_by_global_norm(optim.clip), adam, rate)


def mesh_of(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """The devices that the rows of a training step are cut over; None for a single one.

    With `mesh.data` -1 as many as share the rows equally, of `devices` or else of this machine.

    Raises:
        UsageError: for devices that are not there, or that the rows do not divide among.
    """
    rows = config.raft.batch_size // config.raft.accum_steps
    count = jax.device_count() if devices is None else len(devices)
    data = math.gcd(rows, count) if config.mesh.data == -1 else config.mesh.data
    return make_mesh(data, 1, rows, "raft.batch_size", devices)


def first_weights(config: Config) -> tuple[Params, int]:
    """Weights before any fine-tuning, and the cutoff in bins that they are used with: the saved one, or full."""
    params, bins = init_params(config.model, config.seed), freq_bins(config.model.seq_len)
    if not config.init.checkpoint:
        return params, bins
    params, cutoff = load_weights(config.init.checkpoint, params, bins)
    return params, bins if cutoff is None else cutoff


def sampling_of_cycle(config: Config) -> SamplingConfig:
    """How completions are sampled."""
    return SamplingConfig(temperature=config.raft.temperature, top_p=config.raft.top_p)


def knobs_of(config: Config, schedule: CycleLR) -> Knobs:
    """The settings that advice refers to."""
    raft = config.raft
    return Knobs(
        lr_kind=schedule.kind,
        lr_base=schedule(1),
        lr_source="the schedule in raft.lr_yaml" if raft.lr_yaml else "",
        lr_decay=schedule.decay,
        temperature=raft.temperature,
        anchor=raft.anchor,
        epochs=raft.epochs,
        max_epochs=raft.max_epochs,
        warmup=raft.warmup,
    )
