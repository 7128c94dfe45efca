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
from fftlm_jax.cutoff import freq_bins
from fftlm_jax.curriculum import Answer, Controller, Raise, answer_to_raise
from fftlm_jax.data import Corpus, Prefetcher, TrainingWindows, evaluation_batches, load_corpus
from fftlm_jax.errors import Interrupted, NonFiniteError
from fftlm_jax.generation import Decoder, SamplingConfig
from fftlm_jax.model import build
from fftlm_jax.optim import sawtooth_learning_rate
from fftlm_jax.training import setup
from fftlm_jax.training.checkpoint import Checkpoints, Restored
from fftlm_jax.training.console import Console, duration
from fftlm_jax.training.curves import draw_curves
from fftlm_jax.training.evaluation import Evaluate, make_evaluate
from fftlm_jax.training.interrupts import Interrupts
from fftlm_jax.training.metrics import MetricsLog, read_metrics
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
        `raises`, `seconds` (of training since the start or resume).

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
        if not overwrite:
            self.directory.require_usable(config.resume.mode)
        changes = {}
        if self.directory.has_config and not overwrite:
            changes = changes_on_resume(self.directory.read_config(), config)
        self.corpus = load_run_corpus(config)
        moved = move_aside(workdir) if overwrite else None
        self.directory.acquire()
        stack.callback(self.directory.release)

        self.tx = setup.build_optimizer_of(config)
        self.graph, _ = build(config.model)
        self.controller: Controller = setup.build_controller(config)
        self.checkpoints = Checkpoints(
            self.directory.checkpoints, config.checkpoint.keep_last, config.checkpoint.keep_best
        )
        stack.callback(self.checkpoints.close)
        self.last_eval: dict[str, float] = {}
        self.epoch_loss = [0.0, 0]  # Sum and count of the losses of the epoch under way.
        self.elapsed = 0.0  # Seconds of training before this process.
        restored = self.checkpoints.restore(setup.abstract_state(config, self.tx))
        self.state, self.first_step = self._start(restored)

        self.directory.write_config(to_dict(config))
        self.directory.write_env()
        self.console = Console(self.directory.log)
        stack.callback(self.console.close)
        size = restored.host["metrics_bytes"] if restored else 0
        self.log = MetricsLog(
            self.directory.metrics, self.directory.tensorboard, size, self.first_step if restored else None
        )
        stack.callback(self.log.close)
        self.compiler = stack.enter_context(setup.build_compiler(config, self.graph, self.tx))
        self.interrupts = stack.enter_context(Interrupts())
        self.pending: tuple[int, StepMetrics, jax.Array, Raise | None] | None = None
        self.lr = float(sawtooth_learning_rate(self.state.opt_state))
        self.train_loss = float("nan")
        self.evaluators: dict[Any, tuple[Evaluate, Decoder]] = {}
        self.started = self.lap = time.perf_counter()
        self._announce(restored, changes, moved)

    def train(self) -> dict[str, Any]:
        """The loop."""
        config, total = self.config, self.config.total_steps
        if self.first_step >= total:
            self.console.say(f"already finished: {total} steps are done, in {self.directory.root}")
            return self._result(total)
        with ExitStack() as stack:
            batches = Prefetcher(self._make_batch, self.first_step)
            stack.callback(batches.close)
            self.console.start_progress(self.first_step, total)
            self._compile_current(self.first_step, wait_for_next=jax.default_backend() == "cpu")
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
                    self._leave(done)
        self._finish(total)
        return self._result(total)

    def _start(self, restored: Restored | None) -> tuple[TrainState, int]:
        if restored is None:
            return setup.first_state(self.config, self.controller, self.tx), 0
        require_same_corpus(restored.host["corpus"], self.corpus.fingerprint, self.config)
        self.controller.cutoff = 1  # The saved cutoff is the run's, whatever the config's initial one is by now.
        self.controller.load_state_dict(restored.host["controller"])
        self.last_eval = restored.host["last_eval"]
        self.epoch_loss = restored.host["epoch_loss"]
        self.elapsed = restored.host["elapsed"]
        return restored.arrays, restored.step

    def _announce(self, restored: Restored | None, changes: dict[str, tuple[Any, Any]], moved: Path | None) -> None:
        say, step = self.console.say, self.first_step
        if moved:
            say(f"the old run was moved to {moved.name}")
        say(self.corpus.description)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        say(f"{parameters:,} parameters, {self.config.total_steps} steps, {jax.devices()[0].device_kind}")
        if restored:
            say(f"resuming from step {step}, the newest whole checkpoint, at cutoff {self.controller.cutoff}")
            self.log.write("event", step, event="resumed", cutoff=self.controller.cutoff)
        if self.config.init.checkpoint and not restored:
            say(f"weights from {self.config.init.checkpoint}, starting at cutoff {self.controller.cutoff}")
        for name, (old, new) in changes.items():
            say(f"changed on request: {name} {old!r} -> {new!r}")
            self.log.write("event", step, event="config_changed", key=name, **{"from": old, "to": new})

    def _make_batch(self, step: int) -> Any:
        return self._windows().batch(step, self.config.train.accum_steps, self.config.train.batch_size)

    def _windows(self) -> TrainingWindows:
        model = self.config.model
        return TrainingWindows(self.corpus.train, model.seq_len, model.chunk, self.config.seed)

    def _compile_current(self, step: int, wait_for_next: bool = False) -> None:
        """Makes the current cutoff's step ready and sends the next rung's to be compiled in the background."""
        low_pass = setup.low_pass_at(self.config, self.controller.cutoff)
        was_ready = self.compiler.is_compiled(low_pass)
        before, start = self.compiler.compiled, time.perf_counter()
        compiled = self.compiler.get(low_pass)
        waited = time.perf_counter() - start
        if step == self.first_step or not was_ready or self.compiler.compiled > before:
            self.console.say(f"compiled the step for cutoff {self.controller.cutoff} in {compiled.seconds:.1f}s")
        self.log.write(
            "event",
            step,
            event="compiled",
            cutoff=self.controller.cutoff,
            seconds=round(compiled.seconds, 3),
            waited=round(waited, 3),
            ahead=was_ready,
        )
        self.run_step = compiled.run
        upcoming = self.controller.upcoming_cutoff()
        if upcoming is not None:
            future = self.compiler.ahead(setup.low_pass_at(self.config, upcoming))
            if wait_for_next:  # Steps take twice as long while a compile shares two cores.
                future.result()
        self.lap = time.perf_counter()

    def _raise_if_due(self, step: int) -> Raise | None:
        if not self.controller.is_due(step):
            return None
        self._settle()
        raised = self.controller.check(step)
        if raised:
            self._compile_current(step)
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
        if not metrics.finite:
            self._abort_nonfinite(done, metrics)
        lr_before, self.lr, self.train_loss = self.lr, float(lr), float(metrics.loss)
        if raised:
            self._record_raise(raised, lr_before)
        self.controller.record(self.train_loss)
        self.epoch_loss = [self.epoch_loss[0] + self.train_loss, self.epoch_loss[1] + 1]
        t = self.config.train
        bytes_per_second = t.accum_steps * t.batch_size * self.config.model.seq_len / seconds
        values = {"loss": self.train_loss, "lr": self.lr, "cutoff": self.controller.cutoff}
        values["grad_norm"] = float(metrics.grad_norm)
        if self.config.objective.name == "chunk":
            values |= {"next_byte_loss": float(metrics.next_byte_loss), "chunk_loss": float(metrics.chunk_loss)}
        values["bytes_per_second"] = round(bytes_per_second)
        self.log.write("train", done, epoch=(done - 1) // t.steps_per_epoch, **values)
        self.console.advance(self.train_loss)
        if done % t.log_every == 0:
            self.log.scalars("train", done, **values)
            in_epoch = (done - 1) % t.steps_per_epoch + 1
            self.console.say(
                f"  step {in_epoch}/{t.steps_per_epoch} loss={self.train_loss:.3f} lr={self.lr:.1e} "
                f"cutoff={self.controller.cutoff} {bytes_per_second / 1000:.0f} kB/s"
            )

    def _record_raise(self, raised: Raise, lr_before: float) -> None:
        """Logs a raise once its first step has shown what the learning rate answered."""
        seen = None if raised.improvement is None else round(raised.improvement, 6)
        self.log.write(
            "event",
            raised.step,
            event="cutoff_raised",
            **{"from": raised.old, "to": raised.new},
            improvement=seen,
            lr_before=lr_before,
            lr_after=self.lr,
        )
        why = "by schedule"
        if raised.improvement is not None:
            why = f"improvement {raised.improvement:.2%} < {self.config.curriculum.threshold:.2%}"
        lr = self.config.lr
        answers = ["restart"] if lr.restart == "tooth" else ["pulse"] if lr.restart == "pulse" else []
        answers += [f"x {lr.factor}"] if lr.factor != 1.0 else []
        self.console.say(
            f"🚀 CUTOFF RAISED: {raised.old} -> {raised.new} ({why}), LR {lr_before:.1e} -> {self.lr:.1e} "
            f"({', '.join(answers) or 'unchanged'})"
        )
        self.log.text("raise", raised.step, f"cutoff {raised.old} -> {raised.new}, {why}")

    def _abort_nonfinite(self, done: int, metrics: StepMetrics) -> None:
        t, step = self.config.train, done - 1
        count = t.accum_steps * t.batch_size
        offsets = self._windows().offsets(step * count, count).tolist()
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        self.log.write(
            "event", done, event="nonfinite", loss=loss, grad_norm=grad_norm, cutoff=self.controller.cutoff,
            lr=self.lr, offsets=offsets,
        )  # fmt: skip
        self.log.flush()
        raise NonFiniteError(
            f"step {done}: loss {loss}, gradient norm {grad_norm} at cutoff {self.controller.cutoff}, LR {self.lr:.1e}; "
            f"the update was not made. Its batch begins at corpus offset {offsets[0]} (all in metrics.jsonl). Lower "
            f"lr.base or optim.clip, then run the same command: it resumes from the last checkpoint."
        )

    def _evaluate(self, done: int) -> None:
        """Scores the held-out part, draws the curves and writes a sample."""
        self._settle()
        evaluate, decoder = self._evaluator()
        model, held_out = self.config.model, self.corpus.held_out
        if self.config.eval.max_bytes:
            held_out = held_out[: self.config.eval.max_bytes]
        batches = evaluation_batches(held_out, model.seq_len, model.chunk, self.config.eval.batch_size)
        self.last_eval = {name: round(v, 6) for name, v in evaluate(self.state.params, batches).items()}
        self.log.write("eval", done, **self.last_eval)
        self.log.scalars("eval", done, **self.last_eval)
        scores = " ".join(f"{name}={value:.3f}" for name, value in self.last_eval.items())
        self.console.say(f"  held out at step {done}: {scores} (loss in nats)")
        self._sample(done, decoder)
        self.log.flush()
        title = f"{self.directory.root.name}: step {done}/{self.config.total_steps}, bpb {self.last_eval['bpb']:.3f}"
        draw_curves(read_metrics(self.directory.metrics), self.directory.curves, title)
        self.lap = time.perf_counter()

    def _evaluator(self) -> tuple[Evaluate, Decoder]:
        low_pass = setup.evaluation_low_pass(self.config, self.controller.cutoff)
        key = low_pass.mask_key(self.config.model.kernel_len)
        if key not in self.evaluators:
            evaluate = make_evaluate(self.config, self.graph, low_pass)
            self.evaluators[key] = evaluate, Decoder(self.config.model, self.graph, low_pass)
        return self.evaluators[key]

    def _sample(self, done: int, decoder: Decoder) -> None:
        s = self.config.sample
        if not s.bytes:
            return
        sampling = SamplingConfig(s.temperature, s.top_k, s.top_p, s.repetition_penalty)
        text = decoder.generate(self.state.params, s.prompt.encode(), s.bytes, sampling, self.config.seed)
        with self.directory.samples.open("a", encoding="utf-8") as file:
            cutoff = self.controller.cutoff
            file.write(f"=== step {done}, cutoff {cutoff}, bpb {self.last_eval['bpb']:.3f}\n{s.prompt}")
            file.write(text.decode("utf-8", errors="backslashreplace") + "\n\n")

    def _end_epoch(self, done: int) -> None:
        self._settle()
        total, count = self.epoch_loss
        self.epoch_loss = [0.0, 0]
        t, bins = self.config.train, freq_bins(self.config.model.seq_len)
        bpb = f"bpb={self.last_eval['bpb']:.3f} " if self.last_eval else ""
        self.console.say(
            f"epoch {done // t.steps_per_epoch}/{t.epochs} avg_loss={total / max(count, 1):.3f} {bpb}"
            f"cutoff={self.controller.cutoff}/{bins} lr={self.lr:.1e} elapsed={duration(self._seconds())}"
        )

    def _save(self, done: int) -> None:
        self._settle()
        host = {
            "controller": self.controller.state_dict(),
            "corpus": self.corpus.fingerprint,
            "last_eval": self.last_eval,
            "epoch_loss": self.epoch_loss,
            "elapsed": self._seconds(),
            "metrics_bytes": self.log.flush(),
        }
        evaluated_now = done == self.config.total_steps or done % self.config.eval.every == 0
        self.checkpoints.save(done, self.state, host, self.last_eval["bpb"] if evaluated_now else None)
        self.log.write("event", done, event="checkpoint_saved")
        self.lap = time.perf_counter()

    def _leave(self, done: int) -> None:
        self.log.flush()
        number = self.interrupts.requested
        raise Interrupted(
            f"stopped by signal {number}: step {done} is saved; run the same command to go on from there", number
        )

    def _finish(self, total: int) -> None:
        self.log.write("event", total, event="finished", seconds=round(self._seconds(), 1))
        self.log.flush()
        scores = " ".join(f"{name}={value:.3f}" for name, value in self.last_eval.items())
        self.console.say(f"finished {total} steps in {duration(self._seconds())}: {scores}")
        self.console.say(f"see {self.directory.curves} and {self.directory.samples}")

    def _result(self, total: int) -> dict[str, Any]:
        return {
            "step": total,
            **self.last_eval,
            "train_loss": self.train_loss,
            "cutoff": self.controller.cutoff,
            "raises": len(self.controller.raises),
            "seconds": time.perf_counter() - self.started,
        }

    def _seconds(self) -> float:
        return self.elapsed + time.perf_counter() - self.started

    def _profile(self, step: int) -> None:
        """Starts and stops the profiler at the borders of its window of steps."""
        p = self.config.profile
        if p.steps and step == p.start:
            jax.profiler.start_trace(str(self.directory.profile))
        elif p.steps and step == p.start + p.steps:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
