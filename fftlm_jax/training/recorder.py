"""What a run says and writes about itself: console lines, metrics records, TensorBoard points. Decides nothing."""

from collections.abc import Sequence
from typing import Any

import jax

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.config.cutoff import coefficients_passed, freq_bins
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Raise, Spike, adaptive_factor
from fftlm_jax.data import Corpus
from fftlm_jax.doctor.examine import Watch
from fftlm_jax.model.parameters import utilisation
from fftlm_jax.recording.console import AppendedFile, Console, duration
from fftlm_jax.recording.metrics import MetricsLog, parse_samples, read_samples, sample_entry
from fftlm_jax.runtime.errors import NonFiniteError
from fftlm_jax.training.optimizer import radial_record, routing_words
from fftlm_jax.training.step import StepMetrics, trained


class NullRecorder:
    """Takes the calls of `Recorder` in all processes but the first, and records nothing."""

    def flush(self) -> tuple[int, int]:
        """No bytes; the first process saves its own."""
        return 0, 0

    def nonfinite(self, done: int, metrics: StepMetrics, cutoff: int, offsets: Sequence[int]) -> NonFiniteError:
        """The error that ends every process; the first one says more."""
        return NonFiniteError(f"step {done}: the loss or the gradient is not finite; see what process 0 says.")

    def _nothing(self, *arguments: Any) -> None:
        pass

    start_progress = compiled = batch_changed = step = raised = opened_coefficients = answered_spike = _nothing
    evaluated = epoch_ended = saved = save_failed = interrupted = finished = _nothing


_RESTART_WORDS = {"tooth": "restart", "pulse": "pulse", "none": ""}
_WATCHED_STEPS = 100  # After a raise: with b2 = 0.95 the first updates are twice too large, 1.5 times after 10 steps.


class Recorder:
    """Says on the console, logs and draws what happens in one run.

    Args:
        config, directory: of the run.
        sizes: bytes of `metrics.jsonl` and `samples.txt` that belong to the first step; the rest is cut off.
        first_step: the step that training goes on from.
    """

    def __init__(self, config: Config, directory: RunDirectory, sizes: tuple[int, int], first_step: int) -> None:
        self.config = config
        self.directory = directory
        self.first_step = first_step
        self._mfu_of_a_byte: float | None = None  # The utilisation at one byte per second, once started and if known.
        self.console = Console(directory.log)
        self.tolerance = self.console.tolerance
        self.log = MetricsLog(directory.metrics, directory.tensorboard, sizes[0], first_step, self.tolerance)
        self.watch = Watch(config, self.log, self.console)
        self.samples: AppendedFile | None = None
        self._texts: list[tuple[int, str]] = []  # Of the samples so far, as they are read from the file.
        if config.sample.bytes or directory.samples.exists():
            with self.tolerance.of("samples.txt"):
                self.samples = AppendedFile(directory.samples, sizes[1])
                self._texts = read_samples(directory.samples)

    def say(self, line: str) -> None:
        """Prints and logs one line."""
        self.console.say(line)

    def start_progress(self, done: int, total: int) -> None:
        """Shows how many of the steps are done, on a terminal."""
        self.console.start_progress(done, total)

    def close(self) -> None:
        """Closes the log files and the progress bar."""
        if self.samples:
            with self.tolerance.of("samples.txt"):
                self.samples.close()
        self.log.close()
        self.console.close()

    def flush(self) -> tuple[int, int]:
        """Brings the metrics to disk; returns the bytes of `metrics.jsonl` and of `samples.txt`."""
        return self.log.flush(), self.samples.size if self.samples else 0

    def started(self, corpus: Corpus, params: Any, resumed: bool, cutoff: int) -> None:
        """The first lines of a run."""
        self._mfu_of_a_byte = utilisation(self.config, params, bytes_per_second=1.0)
        self.console.say(corpus.description)
        for warning in corpus.warnings:
            self.console.say(f"WARNING: {warning}")
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        products = f"products in {self.config.model.dtype}"
        self.console.say(
            f"{count:,} parameters, {self.config.total_steps} steps, {jax.devices()[0].device_kind}, {products}"
        )
        self.console.say(f"optimizer: {routing_words(trained(self.config, params), self.config.optim.name)}")
        if resumed:
            self.console.say(f"resuming from step {self.first_step}, the newest whole checkpoint, at cutoff {cutoff}")
            self.log.write("event", self.first_step, event="resumed", cutoff=cutoff)
        elif self.config.init.checkpoint:
            self.console.say(f"weights from {self.config.init.checkpoint}, starting at cutoff {cutoff}")
        if self.config.objective.is_frozen:
            self.console.say(f"the backbone is frozen: the head alone learns, at cutoff {cutoff}; no curriculum")
        if not resumed:
            self.watch.begin()

    def changed(self, event: str, step: int, changes: dict[str, tuple[Any, Any]]) -> None:
        """What a resumed run does not share with its past: `config_changed` (on request) or `environment_changed`."""
        for name, (old, new) in changes.items():
            self.console.say(f"{event.replace('_', ' ')}: {name} {old!r} -> {new!r}")
            self.log.write("event", step, event=event, key=name, **{"from": old, "to": new})

    def compiled(self, step: int, cutoff: int, seconds: float, waited: float) -> None:
        """A step was made ready for a cutoff: how long its compilation took, and how long the run waited for it."""
        times = {"seconds": round(seconds, 3), "waited": round(waited, 3)}
        self.log.write("event", step, event="compiled", cutoff=cutoff, **times)
        when = f"waited {waited:.1f}s for it" if waited > 0.1 else "ahead of time"
        self.console.say(f"the step for cutoff {cutoff} is ready: compiled in {seconds:.1f}s, {when}")

    def batch_changed(self, step: int, old: int, new: int) -> None:
        """From `step` on, updates accumulate another number of micro-batches."""
        size, seq_len = self.config.train.batch_size, self.config.model.seq_len
        self.log.write("event", step, event="batch_changed", **{"from": old * size, "to": new * size})
        self.console.say(f"batch: {old * size} -> {new * size} windows, {new * size * seq_len:,} bytes a step")

    def step(self, done: int, metrics: StepMetrics, cutoff: int, micro_batches: int, seconds: float) -> None:
        """One training step over so many micro-batches."""
        t, model, lr = self.config.train, self.config.model, float(metrics.learning_rate)
        values = {"loss": float(metrics.loss), "lr": lr, "cutoff": cutoff, "grad_norm": float(metrics.grad_norm)}
        if self.config.objective.has_chunks:
            values |= {"next_byte_loss": float(metrics.next_byte_loss), "chunk_loss": float(metrics.chunk_loss)}
        values["bytes_per_second"] = round(micro_batches * t.batch_size * model.seq_len / seconds)
        if self._mfu_of_a_byte is not None:
            values["mfu"] = round(self._mfu_of_a_byte * values["bytes_per_second"], 4)
        self.log.write("train", done, epoch=(done - 1) // t.steps_per_epoch, **values)
        self.console.advance(values["loss"])
        if done % t.log_every == 0:
            self.log.scalars("train", done, **values)
            self._radial(done, metrics)
            self.console.say(
                f"  step {(done - 1) % t.steps_per_epoch + 1}/{t.steps_per_epoch} loss={values['loss']:.3f} "
                f"lr={lr:.1e} cutoff={cutoff} {values['bytes_per_second'] / 1000:.0f} kB/s"
                + (f" mfu={values['mfu']:.1%}" if "mfu" in values else "")
            )

    def _radial(self, done: int, metrics: StepMetrics) -> None:
        """The radial statistics of Muon's matrices: every layer in `metrics.jsonl`, groups in TensorBoard."""
        if metrics.radial:
            record = radial_record(metrics.radial)
            self.log.write("radial", done, **record)
            for group, numbers in record["groups"].items():
                self.log.scalars(f"radial/{group}", done, **numbers)

    def raised(self, raised: Raise, lr_before: float, lr_after: float) -> None:
        """A raise, once its first step has shown what the learning rate answered."""
        seen, lr = raised.improvement, self.config.lr
        self.log.write(
            "event",
            raised.step,
            event="cutoff_raised",
            **{"from": raised.old, "to": raised.new},
            improvement=None if seen is None else round(seen, 6),
            **({} if raised.bound is None else {"improvement_bound": round(raised.bound, 6)}),
            lr_before=lr_before,
            lr_after=lr_after,
        )
        why = "by schedule"
        if seen is not None:
            at_most = "" if raised.bound is None else f", at most {raised.bound:.1%}"
            why = f"improvement {seen:.1%}{at_most} < {self.config.curriculum.threshold:.1%}"
        factor = {1.0: "", "adaptive": f"a factor after {lr.spike_steps} steps"}.get(lr.factor, f"x {lr.factor}")
        answers = [_RESTART_WORDS[lr.restart], factor]
        answer = ", ".join(filter(None, answers)) or "unchanged"
        line = f"CUTOFF RAISED: {raised.old} -> {raised.new} ({why}), LR {lr_before:.1e} -> {lr_after:.1e} ({answer})"
        self.console.say(f"🚀 {line}")
        self.log.text("raise", raised.step, line)

    def opened_coefficients(self, done: int, metrics: StepMetrics, raised: Raise) -> None:
        """For some steps after a raise, the RMS update of the coefficients it opened beside that of the older ones.

        An optimizer that corrects the bias of its moments by its own age, not by a coefficient's, moves new ones too
        far at first; without this record that would pass for what the new frequencies do.
        """
        if metrics.spectrum_update_K is None or done > raised.step + _WATCHED_STEPS:
            return
        bins, kernel_len = freq_bins(self.config.model.seq_len), self.config.model.kernel_len
        old, new = (coefficients_passed(cutoff, bins, kernel_len) for cutoff in (raised.old, raised.new))
        if new > old:
            squares = metrics.spectrum_update_K
            older, opened = float(squares[:old].mean()) ** 0.5, float(squares[old:new].mean()) ** 0.5
            self.log.write("opened", done, older_rms=older, opened_rms=opened)

    def answered_spike(self, step: int, spike: Spike, lr_before: float, lr_after: float) -> None:
        """The adaptive factor, once the first step under it has shown the learning rate."""
        factor = adaptive_factor(spike.height)
        numbers = {"loss_before": spike.before, "loss_after": spike.after, "spike": spike.height, "factor": factor}
        rates = {"lr_before": lr_before, "lr_after": lr_after}
        self.log.write("event", step, event="lr_reduced", raised_at=spike.raised_at, **numbers, **rates)
        line = (
            f"LR REDUCED: x {factor}, {lr_before:.1e} -> {lr_after:.1e} (the loss went from {spike.before:.3f} to "
            f"{spike.after:.3f} at the raise at step {spike.raised_at})"
        )
        self.console.say(line)
        self.log.text("raise", step, line)

    def nonfinite(self, done: int, metrics: StepMetrics, cutoff: int, offsets: Sequence[int]) -> NonFiniteError:
        """Logs a step whose update was not made, and returns the error that ends the run if it was not passed over."""
        loss, grad_norm, lr = float(metrics.loss), float(metrics.grad_norm), float(metrics.learning_rate)
        facts = {"loss": loss, "grad_norm": grad_norm, "cutoff": cutoff, "lr": lr, "skipped": not metrics.halted}
        self.log.write("event", done, event="nonfinite", **facts, offsets=list(offsets))
        self.log.flush()
        what = (
            f"step {done}: loss {loss}, gradient norm {grad_norm} at cutoff {cutoff}, LR {lr:.1e}; the update was not "
            f"made. Its batch begins at corpus offset {offsets[0]} (all in metrics.jsonl)."
        )
        if not metrics.halted:
            self.console.say(f"{what} Passed over, as train.skip_nonfinite allows.")
        return NonFiniteError(
            f"{what} Lower lr.base (with --config.resume.allow=lr.base) and run the same command: it resumes from the "
            "last checkpoint."
        )

    def evaluated(self, done: int, scores: dict[str, Any], cutoff: int, train_seconds: float, sample: bytes) -> None:
        """Held-out scores, a sample, what the rules find, and the picture redrawn with them."""
        self.log.write("eval", done, **scores, train_seconds=round(train_seconds, 2))
        self.log.scalars("eval", done, **_numbers(scores))
        self.log.scalars("bpb_by_word_place", done, **scores["bpb_by_word_place"])
        for offset, value in enumerate(scores.get("chunk_bpb_by_offset", ()), start=1):
            self.log.scalars("chunk_bpb_by_offset", done, **{f"{offset:02}": value})
        spent = f"after {duration(train_seconds)} of training"
        self.console.say(f"  held out at step {done}: {_words(scores)} (loss in nats), {spent}")
        if self.samples and self.config.sample.bytes:
            text = self.config.sample.prompt + sample.decode("utf-8", errors="backslashreplace")
            entry = sample_entry(done, cutoff, scores["bpb"], text)
            self._texts += parse_samples(entry)
            with self.tolerance.of("samples.txt"):
                self.samples.add(entry)
                self.samples.write_out()
        self.log.flush()
        self.watch.look(done, self._texts)
        with self.tolerance.of("curves.png"):
            self._draw(done, scores["bpb"])

    def _draw(self, done: int, bpb: float) -> None:
        # Late: matplotlib takes a second to import, which a refused run should not wait for.
        from fftlm_jax.recording.curves import draw_curves

        title = f"{self.directory.root.name}: step {done}/{self.config.total_steps}, bpb {bpb:.3f}"
        draw_curves(self.log.history, self.directory.curves, title)

    def epoch_ended(
        self, done: int, average_loss: float, scores: dict[str, Any], cutoff: int, lr: float, seconds: float
    ) -> None:
        """The line at the end of an epoch."""
        t = self.config.train
        bpb = f"bpb={scores['bpb']:.3f} " if scores else ""
        self.console.say(
            f"epoch {done // t.steps_per_epoch}/{t.epochs} avg_loss={average_loss:.3f} {bpb}"
            f"cutoff={cutoff}/{freq_bins(self.config.model.seq_len)} lr={lr:.1e} elapsed={duration(seconds)}"
        )

    def saved(self, done: int) -> None:
        """A checkpoint is whole on disk."""
        self.log.write("event", done, event="checkpoint_saved")

    def save_failed(self, done: int, why: str) -> None:
        """A save failed; training goes on, and the next one is tried when it is due."""
        self.log.write("event", done, event="save_failed", why=why.replace(str(self.directory.root), "."))
        self.console.say(f"WARNING: {why} Training goes on; the next save is tried when it is due.")

    def interrupted(self, done: int, name: str) -> None:
        """A signal ends the process; `done` is saved."""
        self.log.write("event", done, event="interrupted", signal=name)
        self.log.flush()

    def finished(self, total: int, scores: dict[str, Any], seconds: float) -> None:
        """The last lines of a run."""
        self.log.write("event", total, event="finished", seconds=round(seconds, 1))
        self.log.flush()
        self.console.say(f"finished {total} steps in {duration(seconds)}; held out: {_words(scores)} (loss in nats)")
        self.console.say(f"see {self.directory.curves} and {self.directory.samples}")


def _numbers(scores: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def _words(scores: dict[str, Any]) -> str:
    return " ".join(f"{name}={value:.3f}" for name, value in _numbers(scores).items())
