"""The windows of each training step, in the order that the step alone decides, where its devices want them."""

import jax
import numpy as np
from jax.sharding import Mesh

from fftlm_jax.config import Config
from fftlm_jax.data import ByteSequence, TrainingWindows
from fftlm_jax.training import setup


class StepWindows:
    """Batches of a run by step. `stages` says how many micro-batches a step takes."""

    def __init__(self, config: Config, data: ByteSequence, mesh: Mesh | None) -> None:
        self.stages = setup.batch_stages(config)
        self._windows = TrainingWindows(data, config.model.seq_len, config.model.chunk, config.seed)
        self._batch_size = config.train.batch_size
        self._mesh = mesh

    def batch(self, step: int) -> np.ndarray | jax.Array:
        """Windows uint8 [micro-batches, B, seq_len + chunk] of update number `step`, from 0."""
        of_step = (self._first(step), self.stages.micro_batches(step), self._batch_size)
        if self._mesh is None:
            return self._windows.batch(*of_step)
        shape = (*of_step[1:], self._windows.length)
        # Every process reads the rows of its own devices, and no others.
        own_rows = lambda index: self._windows.batch(*of_step, rows=index[1])  # noqa: E731
        return jax.make_array_from_callback(shape, setup.windows_sharding(self._mesh), own_rows)

    def offsets(self, step: int) -> list[int]:
        """Where in the corpus the windows of a step begin."""
        count = self.stages.micro_batches(step) * self._batch_size
        return self._windows.offsets(self._first(step), count).tolist()

    def _first(self, step: int) -> int:
        """The number of a step's first window."""
        return self.stages.micro_batches_before(step) * self._batch_size
