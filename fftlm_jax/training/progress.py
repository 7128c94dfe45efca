"""How far a run has come, and which failed saves it survives.

How far a run has come, as the host counts it: losses, scores and seconds. Saved with every checkpoint.

Saves steps of a run, and decides which failures of that it survives.
"""

import math
import time
from typing import Any

from fftlm_jax.checkpoints.contents import TrainState
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.runtime.errors import SaveError
from fftlm_jax.training.recorder import Recorder, SilentRecorder

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


class Saver:
    """Saves may fail some times in a row, since a full disk may be cleared; training goes on meanwhile.

    Args:
        checkpoints: where to.
        recorder: is told what came of it.
        retries: failures in a row that are survived.
    """

    def __init__(self, checkpoints: Checkpoints, recorder: Recorder | SilentRecorder, retries: int) -> None:
        self._checkpoints, self._recorder, self._retries = checkpoints, recorder, retries
        self._failed = 0  # In a row.

    def save(self, done: int, state: TrainState, host: dict[str, Any], bpb: float | None, must: bool) -> None:
        """Saves step `done`, ranked by `bpb` if it was just evaluated.

        Raises:
            SaveError: if it failed and `must` not, or has too often. NonFiniteError: see `Checkpoints.save`.
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
