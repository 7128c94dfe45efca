"""The state of a run, how far it has come as the host counts it, and which failed saves it survives."""

import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax

from fftlm_jax.checkpoints.contents import TrainState
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.config.reading import to_dict
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Controller, Raise, Spike
from fftlm_jax.optim import learning_rate_in_force
from fftlm_jax.runtime.errors import SaveError
from fftlm_jax.training.batches import StepWindows
from fftlm_jax.training.recorder import NullRecorder, Recorder
from fftlm_jax.training.step import StepMetrics

_SAVED = ("scores", "evaluated_at", "train_loss", "epoch_loss", "train_seconds")


class Progress:
    """Numbers that a run carries from step to step and from process to process."""

    def __init__(self) -> None:
        self.scores: dict[str, Any] = {}  # Of the last evaluation.
        self.evaluated_at: int | None = None
        self.best_bpb = math.inf
        self.train_loss = math.nan
        self.epoch_loss = [0.0, 0]  # Sum and count of the losses of the epoch under way.
        self.train_seconds = 0.0  # Seconds of training steps alone: no compiling, evaluating or saving.
        self._elapsed = 0.0  # Seconds that earlier processes gave to this run.
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Wall-clock seconds given to this run, by this process and those before it."""
        return self._elapsed + time.perf_counter() - self._started

    def record(self, loss: float) -> None:
        """A step was made at this loss."""
        self.train_loss = loss
        self.epoch_loss = [self.epoch_loss[0] + loss, self.epoch_loss[1] + 1]

    def end_epoch(self) -> float:
        """The mean loss of the epoch that ends."""
        total, count = self.epoch_loss
        self.epoch_loss = [0.0, 0]
        return total / max(count, 1)

    def rank(self, scores: dict[str, Any]) -> bool:
        """Takes in the scores of an evaluation; returns whether they are the best yet."""
        self.scores = scores
        is_best = scores["bpb"] < self.best_bpb
        self.best_bpb = min(self.best_bpb, scores["bpb"])
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        best = self.best_bpb if math.isfinite(self.best_bpb) else None  # JSON has no infinity.
        return {**{name: getattr(self, name) for name in _SAVED}, "best_bpb": best, "elapsed": self.seconds()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        for name in _SAVED:
            setattr(self, name, saved[name])
        self.best_bpb = math.inf if saved["best_bpb"] is None else saved["best_bpb"]
        self._elapsed = saved["elapsed"]


@dataclasses.dataclass
class RunState:
    """What training changes and a checkpoint holds."""

    arrays: TrainState  # On the device.
    controller: Controller
    progress: Progress
    step: int  # Updates done.

    def host_part(self, config: Config, corpus: str, log_sizes: tuple[int, int]) -> dict[str, Any]:
        """All that a later process needs besides the arrays to go on as this one would; JSON-ready.

        Args:
            config: of the run.
            corpus: its fingerprint.
            log_sizes: bytes of `metrics.jsonl` and of `samples.txt`.
        """
        return {
            "config": to_dict(config),
            "controller": self.controller.state_dict(),
            "corpus": corpus,
            **self.progress.state_dict(),
            "metrics_bytes": log_sizes[0],
            "samples_bytes": log_sizes[1],
        }

    def result(self) -> dict[str, Any]:
        """The final numbers that `loop.run` returns."""
        progress, controller = self.progress, self.controller
        return {
            "step": self.step,
            **progress.scores,
            "train_loss": progress.train_loss,
            "cutoff": controller.cutoff,
            "raises": len(controller.raises),
            "seconds": progress.seconds(),
            "train_seconds": progress.train_seconds,
        }


class Changes(NamedTuple):
    """What is decided before a step: a raise, an answer to the spike of an earlier one, another size of the batch."""

    raised: Raise | None
    spike: Spike | None
    batch: bool


class MetricsReader:
    """Reads the metrics of each step once the next one is sent; tells progress, controller and recorder of them."""

    def __init__(self, windows: StepWindows, state: RunState, recorder: Recorder | NullRecorder) -> None:
        self.recorder = recorder
        self.learning_rate = float(learning_rate_in_force(state.arrays.opt_state))
        self._windows, self._state = windows, state
        self._pending: tuple[int, StepMetrics, Changes] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """The seconds of the next step count from now: what was done since the last one was no training."""
        self._clock = time.perf_counter()

    def sent(self, metrics: StepMetrics, changes: Changes) -> None:
        """Reads the step before, and keeps the metrics of the one just sent for later."""
        self.catch_up()
        self._pending = self._state.step, metrics, changes

    def catch_up(self) -> None:
        """Waits for the step that is still pending, if any, and records it.

        Raises:
            NonFiniteError: if it was not finite and may not be passed over.
        """
        if self._pending is None:
            return
        (done, metrics, changes), self._pending = self._pending, None
        metrics = jax.device_get(metrics)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._state.progress.train_seconds += seconds
        lr_before, self.learning_rate = self.learning_rate, float(metrics.learning_rate)
        if changes.raised:
            self.recorder.raised(changes.raised, lr_before, self.learning_rate)
        if changes.spike:
            self.recorder.answered_spike(done - 1, changes.spike, lr_before, self.learning_rate)
        cutoff, windows = self._state.controller.cutoff, self._windows
        if not metrics.finite:
            error = self.recorder.nonfinite(done, metrics, cutoff, windows.offsets(done - 1))
            if metrics.halted:
                raise error
            return  # Passed over; neither the curriculum nor an average sees its loss.
        self._state.progress.record(float(metrics.loss))
        self._state.controller.record(float(metrics.loss))
        self.recorder.step(done, metrics, cutoff, windows.stages.micro_batches(done - 1), seconds)
        if self._state.controller.raises:
            self.recorder.opened_coefficients(done, metrics, self._state.controller.raises[-1])


class Saver:
    """Saves may fail some times in a row, since a full disk may be cleared; training goes on meanwhile.

    Args:
        checkpoints: where to.
        recorder: is told what came of it.
        retries: failures in a row that are survived.
    """

    def __init__(self, checkpoints: Checkpoints, recorder: Recorder | NullRecorder, retries: int) -> None:
        self._checkpoints, self._recorder, self._retries = checkpoints, recorder, retries
        self._failed = 0  # In a row.

    def save(self, done: int, state: TrainState, host: dict[str, Any], bpb: float | None, must: bool) -> None:
        """Saves step `done`, ranked by `bpb` if it was just evaluated.

        Raises:
            SaveError: if the save failed although it must not (`must`), or failed more than `retries` times in a row.
            NonFiniteError: see `Checkpoints.save`.
        """
        try:
            self._checkpoints.save(done, state, host, bpb)
        except SaveError as error:
            self._failed += 1
            if must or self._failed > self._retries:
                raise
            self._recorder.save_failed(done, str(error))
        else:
            self._failed = 0
            self._recorder.saved(done)
