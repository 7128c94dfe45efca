"""Writes and reads `metrics.jsonl` and `samples.txt`.

`metrics.jsonl` has one record per step, evaluation and event, written once and in order; TensorBoard gets its numbers.
`samples.txt` has what a model wrote at each evaluation, under a heading that says when.
"""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fftlm_jax.recording.console import AppendedFile, Tolerance
from fftlm_jax.recording.history import History, Record
from fftlm_jax.runtime.errors import SaveError
from fftlm_jax.runtime.untrusted import parse_json, printable

# tensorboardX imports torch wherever it is installed, which takes a second or two and hundreds of megabytes. Nothing
# here hands it a tensor of torch, so it is told that there is none.
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

_LONGEST_LINE = 1 << 20  # Bytes; the longest records, of radial statistics, have some ten thousand.
_EVENTS = 200  # Of TensorBoard, that wait for company before they are written.


class TensorBoard:
    """Adds events to a folder; what cannot be written waits and is tried again, in a new file.

    In the thread that trains, so that a failure is met where it can be answered: tensorboardX's own writer works in a
    thread that a full disk ends for good. Its format of single events is used here.

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
        if len(self._waiting) >= _EVENTS:
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


class MetricsLog:
    """Appends records to `metrics.jsonl` and their numbers to TensorBoard.

    Args:
        file: path of `metrics.jsonl`.
        tensorboard: folder of the event files.
        size: bytes of `file` to keep, for a resumed run. What came after belongs to steps that will be done again; of
            it only what stays true is kept: failures, and that `step` was saved.
        step: the step that training goes on from; TensorBoard forgets what it has of later ones.
        tolerance: of later failures to write.

    Raises:
        SaveError: if `file` cannot be opened.
    """

    def __init__(
        self, file: Path, tensorboard: Path, size: int = 0, step: int = 0, tolerance: Tolerance | None = None
    ) -> None:
        self._tolerance = tolerance or Tolerance(print)
        lasting: list[Record] = []
        try:
            if file.exists() and file.stat().st_size > size:
                lasting = [r for r in read_metrics(file, size) if _outlives_resume(r, step)]
            self._file = AppendedFile(file, size)
            self.history = History(read_metrics(file))  # Read once; what is written from now on is added to it.
        except OSError as error:
            raise SaveError(f"{file} cannot be written ({error.strerror}).") from error
        self._tensorboard = TensorBoard(tensorboard, purge_from=step + 1 if tensorboard.exists() else None)
        for record in lasting:
            self._add(record)

    def write(self, kind: str, step: int, **values: Any) -> Record:
        """Writes one record; `step` counts updates done. Non-finite numbers become null, with `"nonfinite": true`."""
        record = finite_record({"kind": kind, "step": step, **values})
        self._add(record)
        return record

    def _add(self, record: Record) -> None:
        self.history.add(record)
        with self._tolerance.of("metrics.jsonl"):
            self._file.add(json.dumps(record) + "\n")

    def scalars(self, prefix: str, step: int, **values: float) -> None:
        """Adds numbers to TensorBoard only."""
        with self._tolerance.of("tensorboard/"):
            for name, value in values.items():
                self._tensorboard.scalar(f"{prefix}/{name}", value, step)

    def text(self, tag: str, step: int, text: str) -> None:
        """Adds text to TensorBoard only."""
        with self._tolerance.of("tensorboard/"):
            self._tensorboard.text(tag, text, step)

    def flush(self) -> int:
        """Brings to disk what it takes; returns the bytes that `metrics.jsonl` has, or will have."""
        with self._tolerance.of("metrics.jsonl"):
            self._file.sync()
        with self._tolerance.of("tensorboard/"):
            self._tensorboard.flush()
        return self._file.size

    def close(self) -> None:
        """Flushes and closes both."""
        with self._tolerance.of("metrics.jsonl"):
            self._file.close()
        with self._tolerance.of("tensorboard/"):
            self._tensorboard.close()


def _outlives_resume(record: Record, step: int) -> bool:
    event = record.get("event")
    failed = event == "nonfinite" and not record.get("skipped")  # One that was passed over will be met again.
    return failed or (event == "checkpoint_saved" and record["step"] <= step)


def finite_record(record: Record) -> Record:
    """JSON has no NaN: replaces non-finite numbers, also in lists and objects, by null and says so."""
    clean = _finite(record)
    return record if clean == record else {**clean, "nonfinite": True}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(file: Path, start: int = 0) -> list[Record]:
    """All whole records of a `metrics.jsonl` from byte `start` on.

    Lines that are no record are left out: a last one cut short by a crash, and whatever else cannot be read.
    """
    return [record for line in _lines(file, start) if (record := _record(line)) is not None]


def _lines(file: Path, start: int) -> Iterator[bytes]:
    """Lines one by one, since a log may be long; those longer than any record are passed over piece by piece."""
    with file.open("rb") as handle:
        handle.seek(start)
        is_begun = False  # Within a line that is too long.
        while piece := handle.readline(_LONGEST_LINE):
            is_whole = piece.endswith(b"\n")
            if not is_begun and (is_whole or len(piece) < _LONGEST_LINE):
                yield piece
            is_begun = not is_whole


def _record(line: bytes) -> Record | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("kind"), str) and type(record.get("step")) is int
    return record if is_record else None


_HEADING = re.compile(r"^=== step ([0-9]{1,18}), cutoff [0-9]+, bpb \S+\n", re.MULTILINE)


def sample_entry(step: int, cutoff: int, bpb: float, text: str) -> str:
    """One sample as the file holds it: what was written cannot drive the terminal that shows it."""
    text = printable(text)
    return f"=== step {step}, cutoff {cutoff}, bpb {bpb:.3f}\n{text}\n\n"


def read_samples(file: Path) -> list[tuple[int, str]]:
    """(updates done, text) of every sample; none without the file."""
    return parse_samples(file.read_text(encoding="utf-8", errors="replace")) if file.exists() else []


def parse_samples(entries: str) -> list[tuple[int, str]]:
    """(updates done, text) of every sample in a text of whole entries."""
    _, *parts = _HEADING.split(entries)
    return [(int(step), text.removesuffix("\n\n")) for step, text in zip(parts[::2], parts[1::2])]
