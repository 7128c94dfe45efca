"""The training loop and what it does now and then: raise, evaluate, save, resume.

Order within a step, fixed: check -> step -> record -> evaluate -> save. The host reads a step's metrics after sending
the next one, so that it never keeps the device waiting; before every check, evaluation and save it catches up, so no
decision depends on timing.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from fftlm_jax.config import Config, read_config, to_dict
from fftlm_jax.curriculum import Answer, Controller, Raise, answer_to_raise
from fftlm_jax.data import Corpus, Prefetcher, TrainingWindows, evaluation_batches, load_corpus
from fftlm_jax.errors import Interrupted
from fftlm_jax.generation import Decoder, SamplingConfig
from fftlm_jax.model import build
from fftlm_jax.optim import sawtooth_learning_rate
from fftlm_jax.training import setup
from fftlm_jax.training.checkpoint import Checkpoints, Restored
from fftlm_jax.training.evaluation import Evaluate, make_evaluate
from fftlm_jax.training.interrupts import Interrupts
from fftlm_jax.training.recorder import Recorder
from fftlm_jax.training.resume import changes_on_resume, require_same_corpus
from fftlm_jax.training.run_directory import RunDirectory, move_aside
from fftlm_jax.training.step import StepMetrics, TrainState, events
from fftlm_jax.training.warm_start import source_architecture


def run(values: Mapping[str, Any], workdir: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains (or goes on training) one run to its end.

    Args:
        values: a config with every key of `configs/aligned.py`, as ConfigDict or nested dict.
        workdir: run directory; created, or resumed as `resume.mode` says.
        overwrite: move an existing run directory aside first.

    Returns:
        Final numbers: `step`, `bpb`, `loss` and `chunk_bpb` (held out, as evaluated last), `train_loss`, `cutoff`,
        `raises`, `seconds` (wall clock) and `train_seconds` (training steps alone).

    Raises:
        RunError: any of its kinds, see `fftlm_jax.errors`.
    """
    config = config_of(values)
    with ExitStack() as stack:
        return TrainingRun(config, workdir, overwrite, stack).train()


def config_of(values: Mapping[str, Any]) -> Config:
    """Validates a config; with `init.checkpoint`, the architecture is the one of the run it names."""
    config = read_config(values)
    if not config.init.checkpoint:
        return config
    merged = to_dict(config)
    merged["model"].update(source_architecture(config.init.checkpoint))
    return read_config(merged)


def load_run_corpus(config: Config) -> Corpus:
    """The corpus of a config, checked to hold at least one window on either side."""
    data, model = config.data, config.model
    return load_corpus(data.source, data.path, data.held_out, window=model.seq_len + model.chunk)


class TrainingRun:
    """One run under way: its parts, its state, and one method per thing that happens to it."""

    def __init__(self, config: Config, workdir: str | Path, overwrite: bool, stack: ExitStack) -> None:
        self.config = config
        self.directory = RunDirectory(workdir)
        changes: dict[str, tuple[Any, Any]] = {}
        if not overwrite:
            self.directory.require_usable(config.resume.mode)
            if self.directory.has_config:
                changes = changes_on_resume(self.directory.read_config(), config)
        self.corpus = load_run_corpus(config)
        model = config.model
        self.windows = TrainingWindows(self.corpus.train, model.seq_len, model.chunk, config.seed)
        moved = move_aside(workdir) if overwrite else None
        self.directory.acquire()
        stack.callback(self.directory.release)

        self.tx = setup.build_optimizer_of(config)
        self.graph, _ = build(config.model)
        self.controller: Controller = setup.build_controller(config)
        keep = config.checkpoint
        self.checkpoints = Checkpoints(self.directory.checkpoints, keep.keep_last, keep.keep_best)
        stack.callback(self.checkpoints.close)
        self.scores: dict[str, float] = {}  # Of the last evaluation.
        self.epoch_loss = [0.0, 0]  # Sum and count of the losses of the epoch under way.
        self.elapsed = 0.0  # Seconds that earlier processes gave to this run.
        self.train_seconds = 0.0  # Seconds of training steps alone: no compiling, evaluating or saving.
        restored = self.checkpoints.restore(setup.abstract_state(config, self.tx))
        self.state, self.first_step = self._first_state(restored)

        self.directory.write_config(to_dict(config))
        self.directory.write_env()
        resumed_at = restored.step if restored else None
        self.recorder = Recorder(config, self.directory, restored.host["metrics_bytes"] if restored else 0, resumed_at)
        stack.callback(self.recorder.close)
        self.compiler = stack.enter_context(setup.build_compiler(config, self.graph, self.tx))
        self.interrupts = stack.enter_context(Interrupts())
        self.pending: tuple[int, StepMetrics, jax.Array, Raise | None] | None = None
        self.lr = float(sawtooth_learning_rate(self.state.opt_state))
        self.train_loss = float("nan")
        self.evaluators: dict[Any, tuple[Evaluate, Decoder]] = {}
        self.started = self.lap = time.perf_counter()
        if moved:
            self.recorder.console.say(f"the old run was moved to {moved.name}")
        self.recorder.started(self.corpus, self.state.params, resumed_at, self.controller.cutoff)
        self.recorder.config_changed(self.first_step, changes)

    def train(self) -> dict[str, Any]:
        """The loop."""
        config, total = self.config, self.config.total_steps
        if self.first_step >= total:
            self.recorder.console.say(f"already finished: {total} steps are done, in {self.directory.root}")
            return self._result(total)
        with ExitStack() as stack:
            batches = Prefetcher(self._batch, self.first_step)
            stack.callback(batches.close)
            self.recorder.console.start_progress(self.first_step, total)
            self._compile(self.first_step)
            for step in range(self.first_step, total):
                raised = self._raise_if_due(step)
                self._profile(step)
                self._dispatch(step, batches.next(), raised)
                done = step + 1
                is_last = done == total
                if is_last or done % config.eval.every == 0:
                    self._evaluate(done)
                if done % config.train.steps_per_epoch == 0:
                    self._end_epoch(done)
                if is_last or done % config.checkpoint.every == 0 or self.interrupts.requested:
                    self._save(done)
                if self.interrupts.requested and not is_last:
                    raise self._interrupted(done)
        self.recorder.finished(total, self.scores, self._seconds())
        return self._result(total)

    def _first_state(self, restored: Restored | None) -> tuple[TrainState, int]:
        if restored is None:
            return setup.first_state(self.config, self.controller, self.tx), 0
        require_same_corpus(restored.host["corpus"], self.corpus.fingerprint, self.config)
        self.controller.cutoff = 1  # The saved cutoff is the run's, whatever the config's initial one is by now.
        self.controller.load_state_dict(restored.host["controller"])
        self.scores = restored.host["scores"]
        self.epoch_loss = restored.host["epoch_loss"]
        self.elapsed = restored.host["elapsed"]
        self.train_seconds = restored.host["train_seconds"]
        return restored.arrays, restored.step

    def _batch(self, step: int) -> Any:
        return self.windows.batch(step, self.config.train.accum_steps, self.config.train.batch_size)

    def _compile(self, step: int) -> None:
        """Makes the current cutoff's step ready and sends the next rung's to be compiled in the background."""
        start = time.perf_counter()
        compiled = self.compiler.get(setup.low_pass_at(self.config, self.controller.cutoff))
        self.run_step = compiled.run
        self.recorder.compiled(step, self.controller.cutoff, compiled.seconds, time.perf_counter() - start)
        upcoming = self.controller.upcoming_cutoff()
        if upcoming is not None:
            future = self.compiler.ahead(setup.low_pass_at(self.config, upcoming))
            # Steps take twice as long while a compile shares their cores, so on CPU the first raise's comes before.
            if step == self.first_step and jax.default_backend() == "cpu":
                future.result()
        self.lap = time.perf_counter()

    def _raise_if_due(self, step: int) -> Raise | None:
        if not self.controller.is_due(step):
            return None
        self._settle()
        raised = self.controller.check(step)
        if raised:
            self._compile(step)
        return raised

    def _dispatch(self, step: int, windows: Any, raised: Raise | None) -> None:
        """Sends one step to the device, then reads the metrics of the one before."""
        lr = self.config.lr
        answer = answer_to_raise(lr.restart, lr.factor, raised.old, raised.new) if raised else Answer()
        self.state, metrics = self.run_step(self.state, windows, *events(answer))
        # The state is donated to the next step, so what is read later is copied out of it now.
        pending = (step + 1, metrics, sawtooth_learning_rate(self.state.opt_state) + 0, raised)
        self._settle()
        self.pending = pending

    def _settle(self) -> None:
        """Reads and records the metrics of the step that is still pending, if any."""
        if self.pending is None:
            return
        done, device_metrics, lr, raised = self.pending
        self.pending = None
        metrics, lr = jax.device_get((device_metrics, lr))
        now = time.perf_counter()
        seconds, self.lap = now - self.lap, now
        self.train_seconds += seconds
        if not metrics.finite:
            count = self.config.train.accum_steps * self.config.train.batch_size
            offsets = self.windows.offsets((done - 1) * count, count).tolist()
            raise self.recorder.nonfinite(done, metrics, self.lr, self.controller.cutoff, offsets)
        lr_before, self.lr, self.train_loss = self.lr, float(lr), float(metrics.loss)
        if raised:
            self.recorder.raised(raised, lr_before, self.lr)
        self.controller.record(self.train_loss)
        self.epoch_loss = [self.epoch_loss[0] + self.train_loss, self.epoch_loss[1] + 1]
        self.recorder.step(done, metrics, self.lr, self.controller.cutoff, seconds)

    def _evaluate(self, done: int) -> None:
        """Scores the held-out part, draws the curves and writes a sample."""
        self._settle()
        evaluate, decoder = self._evaluator()
        model, s = self.config.model, self.config.sample
        held_out = self.corpus.held_out[: self.config.eval.max_bytes or None]
        batches = evaluation_batches(held_out, model.seq_len, model.chunk, self.config.eval.batch_size)
        self.scores = {name: round(value, 6) for name, value in evaluate(self.state.params, batches).items()}
        sample = b""
        if s.bytes:
            sampling = SamplingConfig(s.temperature, s.top_k, s.top_p, s.repetition_penalty)
            sample = decoder.generate(self.state.params, s.prompt.encode(), s.bytes, sampling, self.config.seed)
        self.recorder.evaluated(done, self.scores, self.controller.cutoff, self.train_seconds, sample)
        self.lap = time.perf_counter()

    def _evaluator(self) -> tuple[Evaluate, Decoder]:
        low_pass = setup.evaluation_low_pass(self.config, self.controller.cutoff)
        key = low_pass.mask_key(self.config.model.kernel_len)
        if key not in self.evaluators:
            evaluate = make_evaluate(self.config, self.graph, low_pass)
            self.evaluators[key] = evaluate, Decoder(self.config.model, self.graph, low_pass)
        return self.evaluators[key]

    def _end_epoch(self, done: int) -> None:
        self._settle()
        total, count = self.epoch_loss
        self.epoch_loss = [0.0, 0]
        average = total / max(count, 1)
        self.recorder.epoch_ended(done, average, self.scores, self.controller.cutoff, self.lr, self._seconds())

    def _save(self, done: int) -> None:
        self._settle()
        host = {
            "controller": self.controller.state_dict(),
            "corpus": self.corpus.fingerprint,
            "scores": self.scores,
            "epoch_loss": self.epoch_loss,
            "elapsed": self._seconds(),
            "train_seconds": self.train_seconds,
            "metrics_bytes": self.recorder.log.flush(),
        }
        evaluated_now = done == self.config.total_steps or done % self.config.eval.every == 0
        self.checkpoints.save(done, self.state, host, self.scores["bpb"] if evaluated_now else None)
        self.recorder.saved(done)
        self.lap = time.perf_counter()

    def _interrupted(self, done: int) -> Interrupted:
        number = self.interrupts.requested or 0
        return Interrupted(
            f"stopped by signal {number}: step {done} is saved; run the same command to go on from there", number
        )

    def _profile(self, step: int) -> None:
        """Starts and stops the profiler at the borders of its window of steps."""
        p = self.config.profile
        if p.steps and step == p.start:
            jax.profiler.start_trace(str(self.directory.profile))
        elif p.steps and step == p.start + p.steps:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()

    def _seconds(self) -> float:
        return self.elapsed + time.perf_counter() - self.started

    def _result(self, total: int) -> dict[str, Any]:
        return {
            "step": total,
            **self.scores,
            "train_loss": self.train_loss,
            "cutoff": self.controller.cutoff,
            "raises": len(self.controller.raises),
            "seconds": self._seconds(),
            "train_seconds": self.train_seconds,
        }
