"""Makes the next batches in a background thread, in order, while the device works."""

import queue
import threading
from collections.abc import Callable

import numpy as np


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
