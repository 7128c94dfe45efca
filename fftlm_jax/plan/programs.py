"""The programs of a run, compiled for a machine that is not there, and what their compiler says of each.

Planned are the training step of every rung whose program differs, the evaluation of a batch, and one round of cached
decoding. What was found is kept beside the compiled programs of real runs, by the text of the program, the machine and
the versions of the compilers, since compiling for a TPU takes a minute.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum.controller import build_controller, build_rule
from fftlm_jax.evaluation.held_out_bpb import make_sums
from fftlm_jax.generation import sampling_of
from fftlm_jax.generation.cached_decoding import Decoder
from fftlm_jax.generation.sampling import row_keys
from fftlm_jax.model import build
from fftlm_jax.model.language_model import evaluation_low_pass, low_pass_at
from fftlm_jax.model.streaming import lay_out
from fftlm_jax.parallel import round_up_rows, rows, within
from fftlm_jax.plan.arithmetic import flops_of, kept_for_backward
from fftlm_jax.plan.machines import Machine
from fftlm_jax.plan.program_text import Collective, collectives_of
from fftlm_jax.runtime import compile_cache
from fftlm_jax.runtime.paths import local_path
from fftlm_jax.runtime.platform import tracing_for
from fftlm_jax.training.batches import batch_stages
from fftlm_jax.training.compiler import StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.run_parts import abstract_state, build_mesh, placed, trace_step

_CONSTANT = re.compile(r"dense<[^>]*>")
_FORMAT = 1  # Of kept findings; to be raised when what they hold changes.


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
    mesh = build_mesh(config, devices)
    found: dict[str, Program] = {}
    for kind, name, micro_batches, trace in _traces(config, mesh, devices[0], only_last_step):
        with tracing_for(machine.chip.platform):
            traced = trace()
            platform = "cuda" if machine.chip.platform == "gpu" else machine.chip.platform
            with within(mesh):
                lowered = traced.lower(lowering_platforms=(platform,))
        text = lowered.as_text()
        shape = hashlib.sha256(_CONSTANT.sub("dense<>", text).encode()).hexdigest()
        if shape in found:
            same = found[shape]
            found[shape] = dataclasses.replace(same, stands_for=(*same.stands_for, name))
            continue

        def compile_it() -> Findings:
            say(f"compiling {name} for {machine.target}")
            return _compile(traced, lowered, machine, mesh)

        findings = _kept_or(config, machine, text, compile_it)
        found[shape] = Program(name, kind, micro_batches, (name,), findings)
    return list(found.values())


def state_bytes(config: Config, devices: Sequence[Any]) -> StateBytes:
    """The bytes of a run's state on one device of a machine."""
    mesh = build_mesh(config, devices)
    state = abstract_state(config, build_optimizer_of(config, mesh), mesh)
    return StateBytes(_device_bytes(state.params), _device_bytes(state.opt_state), _device_bytes(state.ema))


def _device_bytes(tree: Any) -> int:
    def size(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def _traces(
    config: Config, mesh: Mesh | None, device: Any, only_last_step: bool
) -> Iterator[tuple[str, str, int, Callable[[], jax.stages.Traced]]]:
    """(kind, name, micro-batches, function that traces it) of each program, steps first."""
    graph, _ = build(config.model)
    tx = build_optimizer_of(config, mesh)
    first = build_controller(config).cutoff
    cutoffs = [first, *(rung for rung in build_rule(config).ladder if rung > first)]
    stages = batch_stages(config)
    for micro_batches in dict.fromkeys(stages.accum_steps * multiple for multiple in stages.multiples):
        for cutoff in cutoffs[-1:] if only_last_step else cutoffs:
            variant = StepVariant(low_pass_at(config, cutoff), micro_batches)
            name = f"step at cutoff {cutoff}, {micro_batches} micro-batches"
            own_device = device if mesh is None else None
            yield "step", name, micro_batches, lambda v=variant: trace_step(config, graph, tx, v, mesh, own_device)
    if only_last_step:
        return
    params = abstract_state(config, tx, mesh).params
    alone = SingleDeviceSharding(device)
    low_pass = evaluation_low_pass(config, cutoffs[-1])

    def trace_evaluation() -> jax.stages.Traced:
        B, W = round_up_rows(config.eval.batch_size, mesh), config.model.seq_len + config.model.chunk
        where = alone if mesh is None else rows(mesh)
        batch = (jax.ShapeDtypeStruct((B, W), np.uint8), jax.ShapeDtypeStruct((B,), np.int32))
        weights = params if mesh is not None else jax.tree.map(lambda x: placed(x, alone), params)
        with within(mesh):
            return make_sums(config, graph, low_pass, mesh).trace(weights, *(placed(x, where) for x in batch))

    yield "evaluation", "evaluation of a batch", 0, trace_evaluation
    if low_pass.method != "signal" or low_pass.is_full:
        yield "decoding", f"a round of decoding ({config.sample.mode})", 0, lambda: _trace_decoding(config, alone)


def _trace_decoding(config: Config, alone: SingleDeviceSharding) -> jax.stages.Traced:
    """Rounds of decoding one text, which a single device does."""
    graph, params = build(config.model)
    decoder = Decoder(config.model, graph, evaluation_low_pass(config, build_rule(config).ladder[-1]))
    sampling = sampling_of(config.sample)
    weights = jax.eval_shape(lambda p: lay_out(config.model, graph, p, decoder.low_pass), params)
    recent = jax.ShapeDtypeStruct((1, sampling.memory), jnp.int32)
    state = jax.eval_shape(lambda w: decoder._empty(w, 1), weights)
    carry = jax.eval_shape(lambda w, s, r: decoder._begin(w, s, r, sampling), weights, state, recent)
    keys = jax.eval_shape(lambda: row_keys(0, [0]))
    wanted = jax.ShapeDtypeStruct((), jnp.int32)
    inputs = jax.tree.map(lambda x: placed(x, alone), (weights, carry, keys, wanted))
    return Decoder._write.trace(decoder, *inputs, sampling, config.sample.mode, 64)


def _compile(traced: jax.stages.Traced, lowered: jax.stages.Lowered, machine: Machine, mesh: Mesh | None) -> Findings:
    devices = 1 if mesh is None else mesh.size
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
    # Where memory is plentiful a TPU's two figures disagree, and the compiler for GPUs gives its own no name.
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
    folder = _folder(config)
    if folder is None:
        return compile_it()
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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(dataclasses.asdict(findings)))
        unfinished.replace(file)
    except OSError:
        pass  # It is only slower the next time.
    return findings


def _folder(config: Config) -> Path | None:
    """Where findings are kept: beside compiled programs, and not where a run keeps none of those."""
    if config.compile_cache == compile_cache.OFF or os.environ.get("CI"):
        return None
    if config.compile_cache != compile_cache.AUTO:
        return local_path(config.compile_cache, "compile_cache") / "plans"
    return compile_cache.default_folder(os.environ).parent / "plans"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"
