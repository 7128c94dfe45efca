"""The windows of each training step, in the order that the step alone decides, made ahead in a background thread."""

import queue
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fftlm_jax.config.schema import Config
from fftlm_jax.data import BatchStages, ByteSequence, TrainingWindows
from fftlm_jax.parallel import rows


class Prefetcher:
    """Calls `make(step)` for step = first, first + 1, ... ahead of use. Close it to end the thread."""

    def __init__(self, make: Callable[[int], np.ndarray], first: int, depth: int = 2) -> None:
        self._make = make
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first,), name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> np.ndarray:
        """The next batch in order; raises what `make` raised."""
        item = self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Ends and joins the thread."""
        self._closed.set()
        self._thread.join()

    def _work(self, step: int) -> None:
        while not self._closed.is_set():
            try:
                item = self._make(step)
            except Exception as error:  # Handed to the consumer, which raises it.
                item = error
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            step += 1


class StepWindows:
    """Batches of a run by step. `stages` says how many micro-batches a step takes."""

    def __init__(self, config: Config, data: ByteSequence, mesh: Mesh | None) -> None:
        self.stages = batch_stages(config)
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
        return jax.make_array_from_callback(shape, windows_sharding(self._mesh), own_rows)

    def offsets(self, step: int) -> list[int]:
        """The places in the corpus at which the windows of a step begin."""
        count = self.stages.micro_batches(step) * self._batch_size
        return self._windows.offsets(self._first(step), count).tolist()

    def _first(self, step: int) -> int:
        """The number of a step's first window."""
        return self.stages.micro_batches_before(step) * self._batch_size


def batch_stages(config: Config) -> BatchStages:
    """How many micro-batches each step takes."""
    return BatchStages(config.train.accum_steps, config.train.batch_stages, config.total_steps)


def windows_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of a step's windows [A, B, W]: every micro-batch is cut over all devices."""
    return None if mesh is None else rows(mesh, axis=1)
