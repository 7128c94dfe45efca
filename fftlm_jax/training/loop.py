"""Trains a run: `run` opens a run directory or resumes the run in it, `train` is the loop.

The order within a step is fixed: decide, step, record, evaluate, save. The host reads the metrics of a step after it
has sent the next one, so that the device never waits for it. Before every decision, evaluation and save it catches up,
so no decision depends on timing.
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Checkpoints, Restored
from fftlm_jax.config.reading import changes_of, refuse_changes, settled, to_dict
from fftlm_jax.config.schema import LRConfig
from fftlm_jax.curriculum import Answer, adaptive_factor, answer_to_raise
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.parallel import StopTogether, is_first_process, join_processes, wait_for_all
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import Interrupted
from fftlm_jax.runtime.process import Interrupts
from fftlm_jax.training import run_parts
from fftlm_jax.training.batches import Prefetcher
from fftlm_jax.training.compiler import ProfilerWindow, StepCompiler, StepVariant
from fftlm_jax.training.progress import Changes, MetricsReader, RunState, Saver
from fftlm_jax.training.recorder import NullRecorder, Recorder
from fftlm_jax.training.run_parts import RunParts
from fftlm_jax.training.step import events


def run(values: Mapping[str, Any], workdir: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains one run to its end, from its first step or from its newest whole checkpoint.

    Args:
        values: a config with every key of `configs/aligned.py`, as ConfigDict or nested dict.
        workdir: run directory; created, or resumed as `resume.mode` says.
        overwrite: move an existing run directory aside first.

    Returns:
        Final numbers: `step`, the held-out scores as evaluated last (`bpb`, `loss`, `chunk_bpb`, ...), `train_loss`,
        `cutoff`, `raises`, `seconds` (wall clock) and `train_seconds` (training steps alone).

    Raises:
        RunError: any of its kinds, see `fftlm_jax.runtime.errors`.
    """
    with ExitStack() as stack:
        # First of all: a KeyboardInterrupt in the middle of a compilation takes the interpreter down with it.
        interrupts = stack.enter_context(Interrupts())
        directory = RunDirectory(workdir)
        saved_config = directory.read_config() if directory.has_config and not overwrite else None
        config = run_parts.config_of(values, saved_config)
        d = config.distributed
        join_processes(d.coordinator, d.processes, d.process_id, d.heartbeat)  # Before anything touches a device.
        config = settled(config)
        if not overwrite:
            directory.require_usable(config.resume.mode)
            if saved_config is not None:
                refuse_changes(saved_config, config)
        parts = run_parts.build_run(config, directory)
        wait_for_all("the run directory is looked at")
        moved_to = stack.enter_context(directory.taken(overwrite)) if is_first_process() else None
        wait_for_all("the run directory is ready")
        keep = config.checkpoint
        checkpoints = stack.enter_context(closing(Checkpoints(directory.checkpoints, keep.keep_last, keep.keep_best)))
        restored = checkpoints.restore(run_parts.abstract_state(config, parts.tx, parts.mesh))
        state = run_parts.restored_run_state(parts, restored) if restored else run_parts.initial_run_state(parts)
        if state.step >= config.total_steps:
            if is_first_process():
                print(f"already finished: {state.step} steps are done, in {directory.root}")
            return state.result()
        notes = [f"the old run was moved to {moved_to.name}"] if moved_to else []
        recorder = _opened_recorder(parts, state, restored, [*notes, *directory.notes, *checkpoints.notes], stack)
        saver = Saver(checkpoints, recorder, keep.retries)
        compiler = stack.enter_context(run_parts.build_compiler(config, parts.graph, parts.tx, parts.mesh))
        return train(parts, state, recorder, saver, compiler, interrupts)


def _opened_recorder(
    parts: RunParts, state: RunState, restored: Restored | None, notes: Sequence[str], stack: ExitStack
) -> Recorder | NullRecorder:
    """Brings the files of the run directory to the state of the first step, and says how training begins."""
    if not is_first_process():
        return NullRecorder()
    config, directory = parts.config, parts.directory
    directory.write_config(to_dict(config))
    environment_changes = directory.write_env()
    sizes = (restored.host["metrics_bytes"], restored.host["samples_bytes"]) if restored else (0, 0)
    recorder = stack.enter_context(closing(Recorder(config, directory, sizes, state.step)))
    for note in notes:
        recorder.say(note)
    recorder.started(parts.corpus, state.arrays.params, restored is not None, state.controller.cutoff)
    if restored:
        recorder.changed("config_changed", state.step, changes_of(restored.host["config"], config))
        recorder.changed("environment_changed", state.step, environment_changes)
    return recorder


def train(
    parts: RunParts,
    state: RunState,
    recorder: Recorder | NullRecorder,
    saver: Saver,
    compiler: StepCompiler,
    interrupts: Interrupts,
) -> dict[str, Any]:
    """Trains from `state` to the end of the run.

    Of several processes all run this loop on equal numbers, and so decide alike; the first one records.

    Args:
        parts: of the run; not changed.
        state: where it stands; changed in place, step by step.
        recorder: hears of everything.
        saver: saves checkpoints.
        compiler: of the run's steps.
        interrupts: asked once a step.

    Returns:
        What `run` returns.

    Raises:
        Interrupted: after a signal, once the step is saved, or before the first one. NonFiniteError, SaveError.
    """
    config, total = parts.config, parts.config.total_steps
    with ExitStack() as stack:
        batches = stack.enter_context(closing(Prefetcher(parts.windows.batch, state.step)))
        profiler = stack.enter_context(ProfilerWindow(config.profile, parts.directory.profile))
        stopping, reader = StopTogether(parts.mesh), MetricsReader(parts.windows, state, recorder)
        run_step = _ready_step(parts, state, compiler, reader, is_first=True)
        if stopping.signal(interrupts.requested):
            raise Interrupted("stopped before the first step; nothing was lost", interrupts.requested)
        recorder.start_progress(state.step, total)
        first = state.step
        for step in range(first, total):
            changes = _decide(parts, state, reader)
            if changes.raised or (changes.batch and step > first):
                run_step = _ready_step(parts, state, compiler, reader)
            profiler.before(step, state.arrays)
            state.arrays, metrics = run_step(state.arrays, batches.next(), *events(_answer(config.lr, changes)))
            state.step = step + 1
            faults.point("mid_step", state.step)
            reader.sent(metrics, changes)
            stop = stopping.signal(interrupts.requested)
            _evaluate_and_save(parts, state, saver, reader, stop)
            if stop and state.step < total:
                raise _interrupted(state.step, stop, recorder)
    recorder.finished(total, state.progress.scores, state.progress.seconds())
    return state.result()


def _decide(parts: RunParts, state: RunState, reader: MetricsReader) -> Changes:
    """What changes before the next step; nothing of it depends on how far the device has come."""
    step, controller, stages = state.step, state.controller, parts.windows.stages
    batch = stages.changes_at(step)
    if batch or controller.is_due(step) or controller.spike_is_due(step):
        reader.catch_up()
    changes = Changes(spike=controller.measure_spike(step), raised=controller.check(step), batch=batch)
    if changes.raised and parts.config.eval.before_raise and state.progress.evaluated_at != step:
        _look(parts, state, reader, changes.raised.old)
    if batch:
        reader.recorder.batch_changed(step, *map(stages.micro_batches, (step - 1, step)))
    if changes.raised:
        faults.point("before_raise_save", step)
    return changes


def _answer(lr: LRConfig, changes: Changes) -> Answer:
    """What the learning rate does before a step."""
    raised, spike = changes.raised, changes.spike
    answer = answer_to_raise(lr.restart, lr.factor, raised.old, raised.new) if raised else Answer()
    return answer.reduced_by(adaptive_factor(spike.height)) if spike else answer


def _ready_step(
    parts: RunParts, state: RunState, compiler: StepCompiler, reader: MetricsReader, *, is_first: bool = False
) -> Callable[..., Any]:
    """The step of the present cutoff and batch; those that follow are sent to be compiled behind it."""
    step, cutoff, stages = state.step, state.controller.cutoff, parts.windows.stages

    def variant(cutoff: int, step: int) -> StepVariant:
        return StepVariant(low_pass_at(parts.config, cutoff), stages.micro_batches(step))

    start = time.perf_counter()
    compiled = compiler.get(variant(cutoff, step))
    reader.recorder.compiled(step, cutoff, compiled.seconds, time.perf_counter() - start)
    upcoming, change = state.controller.upcoming_cutoff(), stages.next_change(step)
    ahead = [] if upcoming is None else [variant(upcoming, step)]
    ahead += [] if change is None else [variant(cutoff, change)]
    for future in map(compiler.ahead, ahead):
        # Steps take twice as long while a compile shares their cores, so on CPU the first ones come before.
        if is_first and jax.default_backend() == "cpu":
            future.result()
    wait_for_all("the step is compiled")
    reader.restart_clock()
    return compiled.run


def _evaluate_and_save(parts: RunParts, state: RunState, saver: Saver, reader: MetricsReader, stop: int | None) -> None:
    """What is due after a step: an evaluation, the end of an epoch, a checkpoint."""
    config, done, progress = parts.config, state.step, state.progress
    is_last = done == config.total_steps
    evaluated = is_last or done % config.eval.every == 0
    is_best = False
    if evaluated:
        reader.catch_up()
        is_best = progress.rank(_look(parts, state, reader, state.controller.cutoff))
    if done % config.train.steps_per_epoch == 0:
        reader.catch_up()
        average, rate = progress.end_epoch(), reader.learning_rate
        reader.recorder.epoch_ended(done, average, progress.scores, state.controller.cutoff, rate, progress.seconds())
    if is_last or is_best or stop or done % config.checkpoint.every == 0:
        reader.catch_up()
        host = state.host_part(config, parts.corpus.fingerprint, reader.recorder.flush())
        bpb = progress.scores["bpb"] if evaluated else None
        saver.save(done, state.arrays, host, bpb, must=bool(is_last or stop))
        reader.restart_clock()


def _look(parts: RunParts, state: RunState, reader: MetricsReader, cutoff: int) -> dict[str, Any]:
    """Scores the held-out part at a cutoff, writes a sample, and has both recorded; returns the scores."""
    progress = state.progress
    scores = parts.held_out.scores(state.arrays, cutoff)
    sample = parts.held_out.sample(state.arrays.params, cutoff)
    reader.recorder.evaluated(state.step, scores, cutoff, progress.train_seconds, sample)
    progress.evaluated_at = state.step
    reader.restart_clock()
    return scores


def _interrupted(done: int, number: int, recorder: Recorder | NullRecorder) -> Interrupted:
    name = signal.Signals(number).name
    recorder.interrupted(done, name)
    return Interrupted(f"stopped by {name}: step {done} is saved; run the same command to go on from there", number)
