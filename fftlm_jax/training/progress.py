"""How far a run has come, as the host counts it: losses, scores and seconds. Saved with every checkpoint."""

import math
import time
from typing import Any

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
