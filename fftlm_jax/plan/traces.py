"""Which programs a run has, and each of them traced from shapes alone, for any machine.

Language modelling: the training step of every rung and size of batch, the evaluation of a batch, and rounds of cached
decoding. Fine-tuning: the supervised step, that of the cycles where it trains something else, and the rounds that
sample. Nothing is allocated.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from fftlm_jax.checkpoints.contents import TrainState
from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum.controller import build_controller, build_rule
from fftlm_jax.evaluation.held_out_bpb import make_sums
from fftlm_jax.generation import sampling_of
from fftlm_jax.generation.cached_decoding import Decoder
from fftlm_jax.model import build
from fftlm_jax.model.language_model import evaluation_low_pass, low_pass_at
from fftlm_jax.model.lora import init_adapters
from fftlm_jax.parallel import abstract_at, replicated, round_up_rows, rows, within
from fftlm_jax.raft import raft_parts
from fftlm_jax.raft.fine_tuning import Rows, make_fine_tune_step
from fftlm_jax.runtime.jax_settings import random_key
from fftlm_jax.training.batches import batch_stages
from fftlm_jax.training.compiler import StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.run_parts import abstract_state, build_mesh, trace_step
from fftlm_jax.training.step import averaging, fresh_state


class NamedTrace(NamedTuple):
    """A program of a run before it is traced; `kind` is "step", "evaluation" or "decoding"."""

    kind: str
    name: str
    micro_batches: int  # Of a step; 0 of the others.
    trace: Callable[[], jax.stages.Traced]


def mesh_of(config: Config, devices: Sequence[Any]) -> Mesh | None:
    """The run's mesh on a machine; None for a single device.

    Raises:
        UsageError: if it does not fit the machine.
    """
    return raft_parts.mesh_of(config, devices) if config.task == "raft" else build_mesh(config, devices)


def traces_of(config: Config, mesh: Mesh | None, device: Any, only_last_step: bool) -> Iterator[NamedTrace]:
    """The programs of a run, steps first.

    Args:
        config: of the run.
        mesh: of the machine; None for a single device.
        device: that does what one device does.
        only_last_step: leave out what is not training, and steps below the last rung.
    """
    steps, others = (_fine_tuning_steps, _sampling) if config.task == "raft" else (_training_steps, _use)
    found = list(steps(config, mesh, device))
    if only_last_step:
        found = list({trace.micro_batches: trace for trace in found}.values())
    yield from found
    if not only_last_step:
        yield from others(config, mesh, device)


def _training_steps(config: Config, mesh: Mesh | None, device: Any) -> Iterator[NamedTrace]:
    graph, _ = build(config.model)
    tx = build_optimizer_of(config, mesh)
    first, stages = build_controller(config).cutoff, batch_stages(config)
    cutoffs = [first, *(rung for rung in build_rule(config).ladder if rung > first)]
    for micro_batches in dict.fromkeys(stages.accum_steps * multiple for multiple in stages.multiples):
        for cutoff in cutoffs:
            variant = StepVariant(low_pass_at(config, cutoff), micro_batches)
            name = f"step at cutoff {cutoff}, micro-batches: {micro_batches}"
            own_device = device if mesh is None else None
            trace = lambda v=variant: trace_step(config, graph, tx, v, mesh, own_device)  # noqa: E731
            yield NamedTrace("step", name, micro_batches, trace)


def _use(config: Config, mesh: Mesh | None, device: Any) -> Iterator[NamedTrace]:
    """Evaluation and decoding, at the last rung."""
    graph, _ = build(config.model)
    where = SingleDeviceSharding(device)
    low_pass = evaluation_low_pass(config, build_rule(config).ladder[-1])

    def trace_evaluation() -> jax.stages.Traced:
        B, W = round_up_rows(config.eval.batch_size, mesh), config.model.seq_len + config.model.chunk
        batch = (jax.ShapeDtypeStruct((B, W), np.uint8), jax.ShapeDtypeStruct((B,), np.int32))
        weights = abstract_state(config, build_optimizer_of(config, mesh), mesh).params
        weights = weights if mesh is not None else abstract_at(weights, where)
        across = where if mesh is None else rows(mesh)
        with within(mesh):
            return make_sums(config, graph, low_pass, mesh).trace(weights, *abstract_at(batch, across))

    yield NamedTrace("evaluation", "evaluation of a batch", 0, trace_evaluation)
    if low_pass.method != "signal" or low_pass.is_full:
        decoder = Decoder(config.model, graph, low_pass)
        sample = lambda: decoder.trace(1, sampling_of(config.sample), config.sample.mode, where)  # noqa: E731
        yield NamedTrace("decoding", f"rounds of decoding ({config.sample.mode})", 0, sample)


def _fine_tuning_steps(config: Config, mesh: Mesh | None, device: Any) -> Iterator[NamedTrace]:
    graph, _ = build(config.model)
    raft = config.raft
    for trained in dict.fromkeys((raft.sft_trained, raft.trained)):
        trace = lambda t=trained: _trace_fine_tuning(config, graph, t, mesh, device)  # noqa: E731
        yield NamedTrace("step", f"step of fine-tuning ({trained})", raft.accum_steps, trace)


def _sampling(config: Config, mesh: Mesh | None, device: Any) -> Iterator[NamedTrace]:
    del mesh  # Sampling is what one device does.
    graph, raft = build(config.model)[0], config.raft
    decoder = Decoder(config.model, graph, evaluation_low_pass(config, freq_bins(config.model.seq_len)))
    sampling, where = raft_parts.sampling_of_cycle(config), SingleDeviceSharding(device)
    name = f"rounds of sampling {raft.rows} completions"
    yield NamedTrace("decoding", name, 0, lambda: decoder.trace(raft.rows, sampling, "byte", where))


def _fine_tuning_state(config: Config, trained: str) -> tuple[Any, TrainState, Any]:
    """The base weights, the state of a step that trains `trained`, and its optimizer, as shapes."""
    params, lora = build(config.model)[1], raft_parts.lora_of(config)
    base = {} if trained == "full" else params
    if trained == "lora":
        params = jax.eval_shape(lambda p: init_adapters(p, lora, config.seed), params)
    tx, average = raft_parts.optimizer_of(config, trained, 1), averaging(config.optim.ema_decay)
    return base, jax.eval_shape(lambda p: fresh_state(p, tx.init(p), average), params), tx


def _trace_fine_tuning(
    config: Config, graph: nnx.GraphDef, trained: str, mesh: Mesh | None, device: Any
) -> jax.stages.Traced:
    raft, (task, _) = config.raft, raft_parts.task_of(config)
    base, state, tx = _fine_tuning_state(config, trained)
    step = make_fine_tune_step(
        graph,
        low_pass_at(config, freq_bins(config.model.seq_len)),
        tx,
        lora=raft_parts.lora_of(config) if trained == "lora" else None,
        model_dropout=config.model.dropout > 0,
        skip_nonfinite=config.train.skip_nonfinite,
        precision=config.model.precision,
        ema_decay=config.optim.ema_decay,
        mesh=mesh,
    )
    shape = (raft.accum_steps, raft.batch_size // raft.accum_steps, task.longest_prompt + task.longest_answer)
    batch = Rows(jax.ShapeDtypeStruct(shape, np.uint8), jax.ShapeDtypeStruct(shape, np.float32))
    everywhere = SingleDeviceSharding(device) if mesh is None else replicated(mesh)
    base, state = abstract_at((base, state), everywhere)
    batch = abstract_at(batch, everywhere if mesh is None else rows(mesh, axis=1))
    rate, key = jax.ShapeDtypeStruct((), np.float32), jax.eval_shape(lambda: random_key(0))
    with within(mesh):
        return step.run.trace(base, state, batch, *abstract_at((rate, key), everywhere))


def bytes_per_step(config: Config, micro_batches: int) -> int:
    """Bytes of text that a step of so many micro-batches is shown."""
    if config.task == "raft":
        task, _ = raft_parts.task_of(config)
        return config.raft.batch_size * (task.longest_prompt + task.longest_answer)
    return micro_batches * config.train.batch_size * config.model.seq_len
