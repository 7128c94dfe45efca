"""Rules between config keys: what single ranges cannot say. Each returns sentences; none stops at the first fault."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from fftlm_jax.config import limits as size
from fftlm_jax.config.keys_model import OptimConfig
from fftlm_jax.config.rules_schedules_raft import (
    batch_stage_faults,
    cooldown_faults,
    curriculum_faults,
    ladder_faults,
    raft_faults,
    stage_faults,
)
from fftlm_jax.config.schema import Config, keys, rule_in_force
from fftlm_jax.config.traits import MIXERS, OPTIMIZERS
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.paths import local_path, matches
from fftlm_jax.runtime.untrusted import shown


def faults_between_keys(sections: Mapping[str, Any], with_data: bool = True) -> list[str]:
    """Every sentence about keys that contradict each other, empty for a config that can run.

    Args:
        sections: the sections of a config by name; None (or absent) where a section is faulty by itself. The rules
            about such a section are left out, the others still speak.
        with_data: whether the corpus must be there.
    """
    config, config_task = SimpleNamespace(**sections), sections.get("task")
    rules = (
        (_model, ("model",)),
        (size.model_size, ("model",)),
        (size.batch_size, ("model", "train", "eval")),
        (size.steps, ("train",)),
        (_mixer, ("model", "objective", "curriculum")),
        (ladder_faults, ("model", "objective", "curriculum")),
        (curriculum_faults, ("model", "curriculum")),
        (stage_faults, ("lr", "train")),
        (batch_stage_faults, ("lr", "train")),
        (cooldown_faults, ("objective", "lr", "curriculum")),
        (_optimizer, ("model", "objective", "optim")),
        (_objective, ("model", "objective", "curriculum")),
        (_chunk_head, ("model", "objective", "init")),
        *([(_data, ("data",))] if with_data else []),
        (_evaluation, ("model", "eval")),
        (_sample, ("objective", "curriculum", "sample")),
        (_resume, ("resume",)),
        (_mesh, ("task", "train", "mesh")),
        (_distributed, ("task", "distributed")),
        *(
            [(raft_faults, ("raft", "objective", "curriculum", "optim", "init", "mesh"))]
            if config_task == "raft"
            else []
        ),
    )
    return [
        fault
        for rule, needed in rules
        if all(sections.get(name) is not None for name in needed)
        for fault in rule(config)
    ]


def _model(config: Config) -> Iterator[str]:
    m = config.model
    yield from MIXERS[m.mixer].faults(m)
    if m.seq_len % m.chunk:
        yield f"config.model.chunk: {m.chunk} does not divide seq_len {m.seq_len}; choose a divisor."
    if m.memory != "none" and m.memory_piece > m.seq_len:
        yield f"config.model.memory_piece: {m.memory_piece} exceeds the window of {m.seq_len} bytes; lower it."
    if round(m.d_model * m.ffn_mult) < 1:
        yield f"config.model.ffn_mult: {m.ffn_mult} x d_model {m.d_model} leaves no hidden unit; raise it."


def _mixer(config: Config) -> Iterator[str]:
    m, c = config.model, config.curriculum
    if not MIXERS[m.mixer].has_kernels and rule_in_force(c, config.objective) != "none":
        yield (
            f"config.curriculum.rule: {c.rule!r} raises the cutoff of convolution kernels, and mixer {m.mixer!r} has "
            "none; set it to 'none'."
        )


def _optimizer(config: Config) -> Iterator[str]:
    o, neutral = config.optim, OptimConfig()
    if OPTIMIZERS[o.name].needs_matrices and config.objective.is_frozen:
        yield f"config.optim.name: a frozen backbone leaves {o.name} no matrix; use 'adamw'."
    for other, traits in OPTIMIZERS.items():
        for name in traits.keys if other != o.name else ():
            if getattr(o, name) != getattr(neutral, name):
                yield f"config.optim.{name}: belongs to {other} and would do nothing; set optim.name to {other!r}."
    if isinstance(o.spectral_lr, tuple):
        yield from _spectral_lr_by_group(o.spectral_lr, (MIXERS[config.model.mixer].group, "mlp"))
    span = o.spectral_span
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in span)
    if len(span) != 2 or not numbers or not 0 <= span[0] < span[1] <= 1:
        yield f"config.optim.spectral_span: {shown(span)} is not (start, end) with 0 <= start < end <= 1."


def _spectral_lr_by_group(rows: tuple, groups: tuple[str, str]) -> Iterator[str]:
    seen: list[str] = []
    for row in rows:
        is_pair = isinstance(row, tuple) and len(row) == 2 and row[0] in groups and row[0] not in seen
        number = row[1] if is_pair else None
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            yield (
                f"config.optim.spectral_lr: {shown(row)} is not (group, number); the groups of this model, each once, "
                f"are {' and '.join(groups)}, as in (('{groups[0]}', 0.05), ('mlp', 0.15))."
            )
        else:
            seen.append(row[0])
    if not rows:
        yield "config.optim.spectral_lr: is empty; write a number, or (group, number) rows."


def _objective(config: Config) -> Iterator[str]:
    o, c = config.objective, config.curriculum
    if o.has_chunks and config.model.chunk < 2:
        yield f"config.model.chunk: the objective {o.name} predicts chunks of at least 2 bytes; set chunk to 16."
    if c.method == "signal" and not (o.is_last_only and o.next_byte_weight == 0):
        yield (
            "config.curriculum.method: 'signal' masks the spectrum of the padded signal and so sees the future inside "
            "the window; every loss scored inside the window would be flattered. Use 'cosine', or objective.name "
            "'chunk' with positions 'last' and next_byte_weight 0."
        )


def _chunk_head(config: Config) -> Iterator[str]:
    if not config.objective.is_frozen:
        if config.objective.backbone == "frozen":
            yield "config.objective.backbone: only objective.name 'chunk_head' can train the head alone; set 'trained'."
        return
    if not config.init.checkpoint:
        yield "config.init.checkpoint: a frozen backbone must come from a trained run; name its directory."
    if config.model.dropout:
        yield "config.model.dropout: a frozen backbone is not regularised by dropout; set it to 0."


def _data(config: Config) -> Iterator[str]:
    path = config.data.path
    if config.data.source == "files" and not path:
        yield "config.data.path: source 'files' needs a file, a folder or a glob."
    try:
        expanded = str(local_path(path, "config.data.path")) if path else ""
    except UsageError as error:
        yield str(error)
        return
    if path and not matches(expanded):
        path = path if path.isprintable() else shown(path)
        yield f"config.data.path: {path} does not exist and matches no file as a glob; name a file, a folder or a glob."


def _evaluation(config: Config) -> Iterator[str]:
    window, cap = config.model.seq_len + config.model.chunk, config.eval.max_bytes
    if 0 < cap < window:
        yield f"config.eval.max_bytes: {cap} is less than a window of {window} bytes; raise it, or 0 for all."


def _sample(config: Config) -> Iterator[str]:
    mode = config.sample.mode
    if mode != "byte" and not config.objective.has_chunks:
        yield f"config.sample.mode: {mode!r} needs a chunk head, and objective 'next_byte' trains none; use 'byte'."
    if mode != "byte" and config.curriculum.method == "signal":
        yield f"config.sample.mode: a signal mask is decoded byte by byte, not by {mode!r}; use 'byte'."


def _resume(config: Config) -> Iterator[str]:
    known = {*keys(), *(field.name for field in dataclasses.fields(Config))}
    for entry in config.resume.allow:
        if entry not in known:
            yield f"config.resume.allow: {shown(entry)} is no key or section; see configs/aligned.py."


def _mesh(config: Config) -> Iterator[str]:
    m, size = config.mesh, config.train.batch_size
    parts = max(m.data, 1) * m.fsdp  # With data -1 the devices have the last word, see `parallel.make_mesh`.
    if config.task == "train" and size % parts:
        yield f"config.train.batch_size: {size} windows do not divide among {parts} devices (mesh.data x mesh.fsdp)."


def _distributed(config: Config) -> Iterator[str]:
    d = config.distributed
    if d.coordinator in ("", "auto") and (d.processes > 1 or d.process_id):
        yield "config.distributed.coordinator: several processes need the host:port of process 0 here; name it."
    elif d.process_id >= d.processes:
        yield f"config.distributed.process_id: {d.process_id} is not below processes {d.processes}; count from 0."
    if d.coordinator and config.task == "raft":
        yield "config.distributed.coordinator: task 'raft' runs in one process; leave it empty."
