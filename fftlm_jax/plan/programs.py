"""The programs of a run, compiled for a machine that is not there, and what their compiler says of each.

What was found is kept beside the compiled programs of real runs, by the text of the program, the machine and the
versions of the compilers, since compiling for a TPU takes a minute.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fftlm_jax.checkpoints.run_directory import write_json
from fftlm_jax.config.schema import Config
from fftlm_jax.plan.arithmetic import flops_of, kept_for_backward
from fftlm_jax.plan.machines import Machine
from fftlm_jax.plan.program_text import Collective, collectives_of
from fftlm_jax.plan.traces import mesh_of, traces_of
from fftlm_jax.runtime import compile_cache
from fftlm_jax.runtime.errors import SaveError
from fftlm_jax.runtime.paths import make_private
from fftlm_jax.runtime.platform import tracing_for
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.run_parts import abstract_state

_CONSTANT = re.compile(r"dense<[^>]*>")
_FORMAT = 2  # Of kept findings; to be raised when what they hold changes.


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the compiler says of one program. Bytes are those of one device, `flops` those of all together.

    `refusal` is the compiler's own word where it does not compile, "" otherwise. `peak` is what the device must hold at
    once; `code` counts on TPUs. `kept` is what the layers keep for the backward pass, as traced.
    """

    refusal: str
    arguments: int
    outputs: int
    updated_in_place: int
    temporaries: int
    code: int
    peak: int
    flops: float
    kept: int
    holds_float64: bool
    collectives: tuple[Collective, ...]
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run: what it does, which rungs it stands for, and what was found of it."""

    name: str
    kind: str  # "step", "evaluation" or "decoding".
    micro_batches: int  # Of a step; 0 of the others.
    stands_for: tuple[str, ...]
    findings: Findings


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes of a run's state on one device."""

    parameters: int
    optimizer: int
    average: int


def programs_of(
    config: Config,
    machine: Machine,
    devices: Sequence[Any],
    say: Callable[[str], None] = lambda line: None,
    *,
    only_last_step: bool = False,
) -> list[Program]:
    """Compiles the programs of a run for a machine, those that differ only in numbers once.

    Args:
        config: of the run, validated.
        machine: the machine.
        devices: the machine's, from `devices_of`.
        say: told of each program before it is compiled.
        only_last_step: leave out what is not training, and steps below the last rung, which need hardly anything else.

    Raises:
        UsageError: if the run's mesh does not fit the machine.
    """
    mesh = mesh_of(config, devices)
    platform = "cuda" if machine.chip.platform == "gpu" else machine.chip.platform
    found: dict[str, Program] = {}
    for kind, name, micro_batches, trace in traces_of(config, mesh, devices[0], only_last_step):
        with tracing_for(machine.chip.platform):
            traced = trace()
            lowered = traced.lower(lowering_platforms=(platform,))
        text = lowered.as_text()
        shape = hashlib.sha256(_CONSTANT.sub("dense<>", text).encode()).hexdigest()
        if shape in found:
            same = found[shape]
            found[shape] = dataclasses.replace(same, stands_for=(*same.stands_for, name))
            continue

        def compile_it() -> Findings:
            say(f"compiling {name} for {machine.target}")
            return _compile(traced, lowered, machine, 1 if mesh is None or kind == "decoding" else mesh.size)

        findings = _kept_or(config, machine, text, compile_it)
        found[shape] = Program(name, kind, micro_batches, (name,), findings)
    return list(found.values())


def state_bytes(config: Config, devices: Sequence[Any]) -> StateBytes | None:
    """The bytes of a run's state on one device of a machine; None for fine-tuning, whose steps have each its own."""
    if config.task == "raft":
        return None
    mesh = mesh_of(config, devices)
    state = abstract_state(config, build_optimizer_of(config, mesh), mesh)
    return StateBytes(_device_bytes(state.params), _device_bytes(state.opt_state), _device_bytes(state.ema))


def _device_bytes(tree: Any) -> int:
    def size(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def _compile(traced: jax.stages.Traced, lowered: jax.stages.Lowered, machine: Machine, devices: int) -> Findings:
    flops, kept = flops_of(traced.jaxpr), kept_for_backward(traced.jaxpr) // devices
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - start
        return Findings(_refusal(str(error)), 0, 0, 0, 0, 0, 0, flops, kept, False, (), seconds)
    seconds = time.perf_counter() - start
    text, memory = compiled.as_text(), compiled.memory_analysis()
    is_tpu = machine.chip.platform == "tpu"
    # Added up, since the compilers' own peaks are not comparable: that of a TPU leaves parts of the temporaries out
    # where memory is plentiful. What is updated in place counts once.
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    used += memory.temp_size_in_bytes + (memory.generated_code_size_in_bytes if is_tpu else 0)
    return Findings(
        refusal="",
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        updated_in_place=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=used,
        flops=flops,
        kept=kept,
        holds_float64="f64[" in text,
        collectives=tuple(collectives_of(text, distinct_channels=is_tpu)),
        compile_seconds=seconds,
    )


def _refusal(message: str) -> str:
    """The compiler's sentence of a program that does not fit."""
    sentence = re.search(r"Ran out of memory[^\n]*?\bHBM\b[^\n]*", message)
    return " ".join((sentence.group(0) if sentence else message.splitlines()[0]).split())[:400]


def _kept_or(config: Config, machine: Machine, text: str, compile_it: Callable[[], Findings]) -> Findings:
    """Findings of an earlier plan of the same program, or new ones, which are then kept."""
    if not compile_cache.is_on(config.compile_cache, os.environ):
        return compile_it()
    folder = compile_cache.folder_of(config.compile_cache, os.environ) / "plans"
    versions = "".join(f"{n}{_version(n)}" for n in ("jax", "jaxlib", "libtpu", "jax-cuda13-pjrt"))
    key = hashlib.sha256(f"{_FORMAT}\n{machine}\n{versions}\n{text}".encode()).hexdigest()
    file = folder / f"{key}.json"
    try:
        kept = json.loads(file.read_text())
        return Findings(**{**kept, "collectives": tuple(Collective(*c) for c in kept["collectives"])})
    except (OSError, ValueError, KeyError, TypeError):  # Not there, or damaged: then it is found anew.
        pass
    findings = compile_it()
    try:
        make_private(folder)
        write_json(file, dataclasses.asdict(findings))
    except (OSError, SaveError):
        pass  # It is only slower the next time.
    return findings


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"
