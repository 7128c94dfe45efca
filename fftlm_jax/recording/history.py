"""The records of a run as arrays that grow: what the picture and the doctor's rules look at.

A run under way adds each record once, so that an evaluation costs the same late in a run as early, and never reads
`metrics.jsonl` again. Memory: 56 bytes a training step.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]

_TRAIN = ("step", "loss", "next_byte_loss", "chunk_loss", "lr", "cutoff", "grad_norm")
_LARGEST = 1e18  # Whatever is larger is no loss, no rate and no step.


class Columns:
    """Rows of numbers by name; float64, NaN for what is no number. Adding a row takes constant time on average."""

    def __init__(self, names: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._values = np.empty((len(names), 1024))
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, [rows]; a view that later rows do not change."""
        return self._values[self._places[name], : self._rows]

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row; other names in it are passed over."""
        if self._rows == self._values.shape[1]:
            self._values = np.concatenate([self._values, np.empty_like(self._values)], axis=1)
        self._values[:, self._rows] = [v if is_number(v := row.get(name)) else np.nan for name in self._places]
        self._rows += 1


class History:
    """What the records of a run tell, in order; records whose step is no number are passed over.

    Attributes:
        train: one row per training step: `step` (updates done), `loss`, `next_byte_loss` and `chunk_loss` (nats), `lr`,
            `cutoff` (bins), `grad_norm` (before clipping).
        evaluations, raises, warnings: the records themselves.
        rho: by group of matrices, the mean of |rho| (`abs_rho`) by `step`.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.train = Columns(_TRAIN)
        self.evaluations: list[Record] = []
        self.raises: list[Record] = []
        self.warnings: list[Record] = []
        self.rho: dict[str, Columns] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Takes in one record."""
        kind, event = record.get("kind"), record.get("event")
        if not is_number(record.get("step")):
            return
        if kind == "train":
            self.train.add(record)
        elif kind == "eval":
            self.evaluations.append(record)
        elif kind == "radial" and isinstance(record.get("groups"), dict):
            for group, numbers in record["groups"].items():
                if isinstance(numbers, dict):
                    self.rho.setdefault(group, Columns(("step", "abs_rho"))).add({**numbers, "step": record["step"]})
        elif event == "cutoff_raised" and is_number(record.get("from")) and is_number(record.get("to")):
            self.raises.append(record)
        elif event == "warning" and is_number(record.get("at")) and isinstance(record.get("rule"), str):
            self.warnings.append(record)


def is_number(value: Any) -> bool:
    """Whether a value of a record is a number that can be reckoned with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
