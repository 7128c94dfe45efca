"""Saves steps of a run, and decides which failures of that it survives."""

from typing import Any

from fftlm_jax.errors import SaveError
from fftlm_jax.training.checkpoint import Checkpoints
from fftlm_jax.training.recorder import Recorder
from fftlm_jax.training.silent import SilentRecorder
from fftlm_jax.training.step import TrainState


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
