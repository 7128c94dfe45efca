"""The records of a run as arrays, and the stretches of it that rules look at."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fftlm_jax.training.metrics import Record


class Raised(NamedTuple):
    """A raise: the updates done before it, and the cutoffs in bins."""

    step: int
    old: int
    new: int


class Stream(NamedTuple):
    """One entry of each array per training step that was recorded with a finite loss, in order; NaN where unknown."""

    steps: np.ndarray  # Updates done, with this one.
    losses: np.ndarray  # Nats.
    lrs: np.ndarray
    cutoffs: np.ndarray  # Bins.
    grad_norms: np.ndarray  # Before clipping.
    raises: tuple[Raised, ...]
    evaluations: tuple[tuple[int, float], ...]  # (updates done, held-out loss in nats).
    samples: tuple[tuple[int, str], ...]  # (updates done, what the model wrote).

    def rows(self, after: int, until: float) -> slice:
        """The rows of updates `after` + 1 to `until`."""
        first, last = np.searchsorted(self.steps, (after, until), side="right")
        return slice(int(first), int(last))


class Stretch(NamedTuple):
    """The losses from a raise (or the beginning, where there was none yet) to the next raise or an epoch later."""

    begin: int  # Updates done.
    raised: Raised | None
    before: np.ndarray  # The losses at the cutoff before, at most 200.
    losses: np.ndarray
    ages: np.ndarray  # Updates done since `begin`, with this one.
    is_whole: bool  # Whether an epoch of it is there.

    @property
    def place(self) -> str:
        """Where it is, in words."""
        if self.raised is None:
            return f"from step {self.begin} on"
        return f"after the raise {self.raised.old} -> {self.raised.new} at step {self.begin}"


_LARGEST = 1e18  # Whatever is larger is no loss, no rate and no step.
_LOSSES_BEFORE = 200  # Enough for a standard deviation within 7 %, few enough to lie near the raise.


def read_stream(records: Sequence[Record], samples: Iterable[tuple[int, str]] = ()) -> Stream:
    """Takes the training steps, raises and evaluations out of the records of a `metrics.jsonl`.

    A record whose numbers are none is left out.
    """
    train = [r for r in records if r["kind"] == "train" and _is_number(r.get("loss"))]
    return Stream(
        steps=_column(train, "step"),
        losses=_column(train, "loss"),
        lrs=_column(train, "lr"),
        cutoffs=_column(train, "cutoff"),
        grad_norms=_column(train, "grad_norm"),
        raises=tuple(Raised(r["step"], r["from"], r["to"]) for r in records if _is_raise(r)),
        evaluations=tuple((r["step"], r["loss"]) for r in records if r["kind"] == "eval" and _is_number(r.get("loss"))),
        samples=tuple(samples),
    )


def _column(records: Sequence[Record], name: str) -> np.ndarray:
    values: list[Any] = [r.get(name) for r in records]
    return np.array([v if _is_number(v) else np.nan for v in values], dtype=float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_raise(record: Record) -> bool:
    return record.get("event") == "cutoff_raised" and _is_number(record.get("from")) and _is_number(record.get("to"))


def stretches(stream: Stream, steps_per_epoch: int) -> list[Stretch]:
    """What follows each raise, in order; first, what lies before the first one."""
    if not len(stream.steps):
        return []
    # A log may begin in the midst of a run. Its first line stands for as many steps as lie between two lines.
    spacing = float(np.median(np.diff(stream.steps))) if len(stream.steps) > 1 else 1.0
    origin = int(max(stream.steps[0] - spacing, 0))
    begins: list[tuple[int, Raised | None]] = [(raised.step, raised) for raised in stream.raises]
    if not begins or begins[0][0] > origin:
        begins = [(origin, None), *begins]
    found = []
    for i, (begin, raised) in enumerate(begins):
        previous = begins[i - 1][0] if i else 0
        following = begins[i + 1][0] if i + 1 < len(begins) else np.inf
        rows = stream.rows(begin, min(following, begin + steps_per_epoch))
        before = stream.losses[stream.rows(previous, begin)][-_LOSSES_BEFORE:] if raised else np.array([])
        is_whole = min(following, stream.steps[-1]) >= begin + steps_per_epoch
        found.append(Stretch(begin, raised, before, stream.losses[rows], stream.steps[rows] - begin, is_whole))
    return found
