"""TensorBoard's event files, written in the thread that trains, so that a failure is met where it can be answered.

The writer of tensorboardX works in a thread that a full disk ends for good. Its format of single events is used here.

tensorboardX imports torch wherever it is installed, which takes a second or two and hundreds of megabytes. Nothing here
hands it a tensor of torch, so it is told that there is none.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

_HIDES_TORCH = "torch" not in sys.modules
if _HIDES_TORCH:
    sys.modules["torch"] = None  # Makes `import torch` fail, which tensorboardX provides for.
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar, text
finally:
    if _HIDES_TORCH:
        del sys.modules["torch"]

_BUFFER = 200  # Events that wait for company before they are written.


class TensorBoard:
    """Adds events to a folder; what cannot be written waits and is tried again, in a new file.

    Args:
        folder: made with the first event that is written.
        purge_from: TensorBoard forgets what earlier processes wrote of this step and later ones; None: nothing.
    """

    def __init__(self, folder: Path, purge_from: int | None = None) -> None:
        self._folder = folder
        self._writer: EventsWriter | None = None
        self._files = 0
        self._waiting: list[Event] = []
        if purge_from is not None:
            self._waiting.append(Event(step=purge_from, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Adds a number.

        Raises:
            OSError: if what waits could not be written.
        """
        self._add(Event(summary=scalar(tag, value), step=step, wall_time=time.time()))

    def text(self, tag: str, value: str, step: int) -> None:
        """Adds a text, as `scalar` does."""
        self._add(Event(summary=text(tag, value), step=step, wall_time=time.time()))

    def _add(self, event: Event) -> None:
        self._waiting.append(event)
        if len(self._waiting) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            OSError: if that fails. The file that was begun may end in half an event, which TensorBoard reads up to.
        """
        if not self._waiting:
            return
        try:
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._files += 1
                self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{self._files}")
            for event in self._waiting:
                self._writer.write_event(event)
            self._writer.flush()
        except OSError:
            self._abandon()
            raise
        self._waiting.clear()

    def close(self) -> None:
        """Writes what waits, if it can be written, and closes the file."""
        try:
            self.flush()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # Closing tries to write once more what has just failed.
                self._writer.close()
            self._writer = None
