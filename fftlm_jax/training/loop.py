"""The training loop and what it does now and then: raise, evaluate, save.

Order within a step, fixed: check -> step -> record -> evaluate -> save. The host reads a step's metrics after sending
the next one, so that it never keeps the device waiting; before every check, evaluation and save it catches up, so no
decision depends on timing.
"""

import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from fftlm_jax.checkpoints.contents import TrainState, require_training_host
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Checkpoints, Restored
from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.config.reading import changes_of, refuse_changes, require_same_corpus, to_dict
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Answer, Controller, Raise, Spike, adaptive_factor, answer_to_raise
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.data.corpus import load_run_corpus
from fftlm_jax.evaluation.held_out_bpb import HeldOut
from fftlm_jax.model import build
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.optim import learning_rate_in_force
from fftlm_jax.parallel import StopTogether, is_first_process, join_processes, wait_for_all
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import CheckpointError, Interrupted
from fftlm_jax.runtime.process import Interrupts
from fftlm_jax.training import run_parts
from fftlm_jax.training.batches import Prefetcher, StepWindows
from fftlm_jax.training.compiler import ProfilerWindow, StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.progress import Progress, Saver
from fftlm_jax.training.recorder import Recorder, SilentRecorder
from fftlm_jax.training.step import StepMetrics, events


def run(values: Mapping[str, Any], workdir: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains (or goes on training) one run to its end.

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
        return _run(values, RunDirectory(workdir), overwrite, interrupts, stack)


def _run(
    values: Mapping[str, Any], directory: RunDirectory, overwrite: bool, interrupts: Interrupts, stack: ExitStack
) -> dict[str, Any]:
    begun = directory.read_config() if directory.has_config and not overwrite else None
    config = run_parts.config_of(values, begun)
    d = config.distributed
    join_processes(d.coordinator, d.processes, d.process_id, d.heartbeat)  # Before anything touches a device.
    run = TrainingRun(config, directory, overwrite, interrupts, stack)
    if run.first_step >= config.total_steps:
        if run.writes:
            print(f"already finished: {run.first_step} steps are done, in {directory.root}")
        return run.result()
    run.open_for_writing(stack)
    return run.train()


class TrainingRun:
    """One run under way: its parts, its state, and one method per thing that happens to it.

    Of several processes the first one writes; all of them decide, from the same numbers, and so decide the same.

    Building one checks everything, locks the run directory and restores the newest checkpoint, but changes nothing that
    a run left on disk; `open_for_writing` does.
    """

    def __init__(
        self, config: Config, directory: RunDirectory, overwrite: bool, interrupts: Interrupts, stack: ExitStack
    ) -> None:
        self.config, self.directory, self.interrupts = config, directory, interrupts
        self.writes = is_first_process()
        if not overwrite:
            directory.require_usable(config.resume.mode)
            if directory.has_config:
                refuse_changes(directory.read_config(), config)
        self.corpus = load_run_corpus(config)
        self.mesh = run_parts.build_mesh(config)
        self.windows = StepWindows(config, self.corpus.train, self.mesh)
        wait_for_all("the run directory is looked at")
        self.moved_to = directory.move_aside() if overwrite and self.writes else None
        if self.writes:
            directory.acquire()
            stack.callback(directory.release)
        wait_for_all("the run directory is ready")

        self.tx = build_optimizer_of(config, self.mesh)
        self.graph, _ = build(config.model)
        self.controller: Controller = build_controller(config)
        keep = config.checkpoint
        self.checkpoints = Checkpoints(directory.checkpoints, keep.keep_last, keep.keep_best)
        stack.callback(self.checkpoints.close)
        self.progress = Progress()
        self.restored = self.checkpoints.restore(run_parts.abstract_state(config, self.tx, self.mesh))
        self.first_step = self.restored.step if self.restored else 0
        self.state = self._restored_state(self.restored) if self.restored else self._fresh_state()
        self.lr = float(learning_rate_in_force(self.state.opt_state))
        self.pending: tuple[int, StepMetrics, Raise | None, Spike | None] | None = None
        self.held_out = HeldOut(config, self.graph, self.corpus.held_out, self.mesh)
        self.lap = time.perf_counter()

    def open_for_writing(self, stack: ExitStack) -> None:
        """Brings the run directory to the state of the first step, and opens the logs and the compiler."""
        host = self.restored.host if self.restored else {"metrics_bytes": 0, "samples_bytes": 0}
        environment_changes = {}
        if self.writes:
            self.directory.write_config(to_dict(self.config))
            environment_changes = self.directory.write_env()
            sizes = (host["metrics_bytes"], host["samples_bytes"])
            self.recorder = Recorder(self.config, self.directory, sizes, self.first_step)
            stack.callback(self.recorder.close)
        else:
            self.recorder = SilentRecorder()
        self.saver = Saver(self.checkpoints, self.recorder, self.config.checkpoint.retries)
        self.compiler = stack.enter_context(run_parts.build_compiler(self.config, self.graph, self.tx, self.mesh))
        if self.moved_to:
            self.recorder.console.say(f"the old run was moved to {self.moved_to.name}")
        for note in (*self.directory.notes, *self.checkpoints.notes):
            self.recorder.console.say(note)
        self.recorder.started(self.corpus, self.state.params, self.restored is not None, self.controller.cutoff)
        if self.restored:
            self.recorder.changed("config_changed", self.first_step, changes_of(host["config"], self.config))
            self.recorder.changed("environment_changed", self.first_step, environment_changes)

    def train(self) -> dict[str, Any]:
        """The loop."""
        config, total = self.config, self.config.total_steps
        with ExitStack() as stack:
            batches = Prefetcher(self.windows.batch, self.first_step)
            stack.callback(batches.close)
            profiler = stack.enter_context(ProfilerWindow(config.profile, self.directory.profile))
            stopping = StopTogether(self.mesh)
            self._compile(self.first_step)
            if stopping.signal(self.interrupts.requested):
                raise Interrupted("stopped before the first step; nothing was lost", self.interrupts.requested)
            self.recorder.console.start_progress(self.first_step, total)
            for step in range(self.first_step, total):
                spike, raised = self._measure_spike_if_due(step), self._raise_if_due(step)
                self._follow(step, raised)
                profiler.before(step, self.state)
                self._dispatch(step, batches.next(), raised, spike)
                done = step + 1
                stop, is_last = stopping.signal(self.interrupts.requested), done == total
                evaluated = is_last or done % config.eval.every == 0
                is_best = self._evaluate(done) if evaluated else False
                if done % config.train.steps_per_epoch == 0:
                    self._end_epoch(done)
                if is_last or is_best or stop or done % config.checkpoint.every == 0:
                    self._save(done, self.progress.scores["bpb"] if evaluated else None, must=bool(is_last or stop))
                if stop and not is_last:
                    raise self._interrupted(done, stop)
        self.recorder.finished(total, self.progress.scores, self.progress.seconds())
        return self.result()

    def result(self) -> dict[str, Any]:
        """The final numbers that `run` returns."""
        return {
            "step": max(self.first_step, self.config.total_steps),
            **self.progress.scores,
            "train_loss": self.progress.train_loss,
            "cutoff": self.controller.cutoff,
            "raises": len(self.controller.raises),
            "seconds": self.progress.seconds(),
            "train_seconds": self.progress.train_seconds,
        }

    def _fresh_state(self) -> TrainState:
        if self.config.resume.mode == "must":
            raise CheckpointError(
                f"resume.mode=must: {self.directory.root} holds no whole checkpoint; drop the option to start over."
            )
        return run_parts.first_state(self.config, self.controller, self.tx, self.mesh)

    def _restored_state(self, restored: Restored) -> TrainState:
        host, bins = restored.host, freq_bins(self.config.model.seq_len)
        require_training_host(host, bins, self.directory.checkpoints / str(restored.step))
        require_same_corpus(host["corpus"], self.corpus.fingerprint, self.config)
        self.controller.cutoff = 1  # The saved cutoff is the run's, whatever the config's initial one is by now.
        self.controller.load_state_dict(host["controller"])
        self.progress.load_state_dict(host)
        return restored.arrays

    def _follow(self, step: int, raised: Raise | None) -> None:
        """Exchanges the compiled step where the cutoff or the batch has changed before `step`."""
        changed = self.windows.stages.changes_at(step)
        if changed:
            self._settle()
            self.recorder.batch_changed(step, *map(self.windows.stages.micro_batches, (step - 1, step)))
        if raised:
            faults.point("before_raise_save", step)
        if raised or (changed and step > self.first_step):
            self._compile(step)

    def _compile(self, step: int) -> None:
        """Makes the step of the current cutoff and batch ready, and sends the next ones to be compiled behind it."""
        start = time.perf_counter()
        compiled = self.compiler.get(self._variant(self.controller.cutoff, step))
        self.run_step = compiled.run
        self.recorder.compiled(step, self.controller.cutoff, compiled.seconds, time.perf_counter() - start)
        upcoming, change = self.controller.upcoming_cutoff(), self.windows.stages.next_change(step)
        ahead = [] if upcoming is None else [self._variant(upcoming, step)]
        ahead += [] if change is None else [self._variant(self.controller.cutoff, change)]
        for variant in ahead:
            future = self.compiler.ahead(variant)
            # Steps take twice as long while a compile shares their cores, so on CPU the first ones come before.
            if step == self.first_step and jax.default_backend() == "cpu":
                future.result()
        wait_for_all("the step is compiled")
        self.lap = time.perf_counter()

    def _variant(self, cutoff: int, step: int) -> StepVariant:
        return StepVariant(low_pass_at(self.config, cutoff), self.windows.stages.micro_batches(step))

    def _raise_if_due(self, step: int) -> Raise | None:
        if not self.controller.is_due(step):
            return None
        self._settle()
        raised = self.controller.check(step)
        if raised and self.config.eval.before_raise and self.progress.evaluated_at != step:
            self._look(step, raised.old)
        return raised

    def _measure_spike_if_due(self, step: int) -> Spike | None:
        if not self.controller.spike_is_due(step):
            return None
        self._settle()
        return self.controller.measure_spike(step)

    def _dispatch(self, step: int, windows: Any, raised: Raise | None, spike: Spike | None) -> None:
        """Sends one step to the device, then reads the metrics of the one before."""
        lr = self.config.lr
        answer = answer_to_raise(lr.restart, lr.factor, raised.old, raised.new) if raised else Answer()
        if spike:
            answer = answer.reduced_by(adaptive_factor(spike.height))
        self.state, metrics = self.run_step(self.state, windows, *events(answer))
        faults.point("mid_step", step + 1)
        self._settle()
        self.pending = (step + 1, metrics, raised, spike)

    def _settle(self) -> None:
        """Reads and records the metrics of the step that is still pending, if any."""
        if self.pending is None:
            return
        done, metrics, raised, spike = self.pending
        self.pending = None
        metrics = jax.device_get(metrics)
        now = time.perf_counter()
        seconds, self.lap = now - self.lap, now
        self.progress.train_seconds += seconds
        lr_before, self.lr = self.lr, float(metrics.learning_rate)
        if raised:
            self.recorder.raised(raised, lr_before, self.lr)
        if spike:
            self.recorder.answered_spike(done - 1, spike, lr_before, self.lr)
        if not metrics.finite:
            error = self.recorder.nonfinite(done, metrics, self.controller.cutoff, self.windows.offsets(done - 1))
            if metrics.halted:
                raise error
            return  # Passed over; neither the curriculum nor an average sees its loss.
        loss = float(metrics.loss)
        self.progress.record(loss)
        self.controller.record(loss)
        self.recorder.step(done, metrics, self.controller.cutoff, self.windows.stages.micro_batches(done - 1), seconds)
        if self.controller.raises:
            self.recorder.opened_coefficients(done, metrics, self.controller.raises[-1])

    def _evaluate(self, done: int) -> bool:
        """Scores the held-out part; returns whether this step is the best yet."""
        self._settle()
        return self.progress.rank(self._look(done, self.controller.cutoff))

    def _look(self, done: int, cutoff: int) -> dict[str, Any]:
        """Scores the held-out part at a cutoff, draws the curves and writes a sample."""
        scores = self.held_out.scores(self.state, cutoff)
        sample = self.held_out.sample(self.state.params, cutoff)
        self.recorder.evaluated(done, scores, cutoff, self.progress.train_seconds, sample)
        self.progress.evaluated_at = done
        self.lap = time.perf_counter()
        return scores

    def _end_epoch(self, done: int) -> None:
        self._settle()
        progress, average = self.progress, self.progress.end_epoch()
        self.recorder.epoch_ended(done, average, progress.scores, self.controller.cutoff, self.lr, progress.seconds())

    def _save(self, done: int, bpb: float | None, must: bool) -> None:
        """Saves step `done` with all that a later process needs to go on as this one would."""
        self._settle()
        metrics_bytes, samples_bytes = self.recorder.flush()
        host = {
            "config": to_dict(self.config),
            "controller": self.controller.state_dict(),
            "corpus": self.corpus.fingerprint,
            **self.progress.state_dict(),
            "metrics_bytes": metrics_bytes,
            "samples_bytes": samples_bytes,
        }
        self.saver.save(done, self.state, host, bpb, must)
        self.lap = time.perf_counter()

    def _interrupted(self, done: int, number: int) -> Interrupted:
        name = signal.Signals(number).name
        self.recorder.interrupted(done, name)
        return Interrupted(f"stopped by {name}: step {done} is saved; run the same command to go on from there", number)
