"""`metrics.jsonl` and TensorBoard: one record per step, evaluation and event, written once and in order."""

import json
import math
import os
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

Record = dict[str, Any]


class MetricsLog:
    """Appends records to `metrics.jsonl` and their numbers to TensorBoard.

    Args:
        file: path of `metrics.jsonl`.
        tensorboard: folder of the event files.
        size: bytes of `file` to keep, for a resumed run; what came after belongs to steps that will be done again.
        step: the resumed step; TensorBoard purges what it has from there on. None for a fresh run.
    """

    def __init__(self, file: Path, tensorboard: Path, size: int = 0, step: int | None = None) -> None:
        if file.exists() and file.stat().st_size > size:
            os.truncate(file, size)
        self._file = file.open("a", encoding="utf-8")
        # A purge step of 0 would be read as "none", and nothing was logged before step 1.
        self._tensorboard = SummaryWriter(str(tensorboard), purge_step=None if step is None else step + 1)

    def write(self, kind: str, step: int, **values: Any) -> Record:
        """Writes one record; `step` counts updates done. Non-finite numbers become null, with `"nonfinite": true`."""
        record = finite_record({"kind": kind, "step": step, **values})
        self._file.write(json.dumps(record) + "\n")
        return record

    def scalars(self, prefix: str, step: int, **values: float) -> None:
        """Adds numbers to TensorBoard only."""
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{prefix}/{name}", value, step)

    def text(self, tag: str, step: int, text: str) -> None:
        """Adds text to TensorBoard only."""
        self._tensorboard.add_text(tag, text, step)

    def flush(self) -> int:
        """Brings everything to disk; returns the size of `metrics.jsonl` in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        return self._file.tell()

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._tensorboard.close()


def finite_record(record: Record) -> Record:
    """JSON has no NaN: replaces non-finite numbers by null and says so."""
    bad = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    return {**record, **dict.fromkeys(bad), "nonfinite": True} if bad else record


def read_metrics(file: Path) -> list[Record]:
    """All whole records of a `metrics.jsonl`, in order; a last line cut short by a crash is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
