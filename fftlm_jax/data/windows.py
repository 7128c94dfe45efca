"""Which bytes a training step or an evaluation sees, and how many micro-batches a step takes.

The runs behind the spectral source document doubled and tripled their batch at equal thirds of training. A pure
function of the step, so that the step stays the only data state there is.

Which bytes a step sees: pure functions, so that the step number is the only data state there is.

Training goes through the corpus in passes. A pass cuts it, from a phase of its own, into disjoint windows and visits
them in an order of its own, so that every byte is a target once per pass (but for less than two windows at the ends).
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fftlm_jax.data.byte_sequence import ByteSequence, windows_at


@dataclasses.dataclass(frozen=True)
class BatchStages:
    """`multiples[i] * accum_steps` micro-batches a step in the i-th of equal stages of `total_steps` steps together.

    The borders are those of `optim.stage_schedule`; the last stage holds beyond `total_steps`.
    """

    accum_steps: int
    multiples: tuple[int, ...]
    total_steps: int

    def micro_batches(self, step: int) -> int:
        """Micro-batches of update number `step`, from 0."""
        return self.accum_steps * self.multiples[self._stage(step)]

    def micro_batches_before(self, step: int) -> int:
        """Micro-batches of all updates before `step`."""
        starts = [*self._starts(), max(step, self.total_steps)]
        done = (
            multiple * (min(step, end) - start)
            for multiple, start, end in zip(self.multiples, starts, starts[1:])
            if step > start
        )
        return self.accum_steps * sum(done)

    def changes_at(self, step: int) -> bool:
        """Whether this step takes another number of micro-batches than the one before it."""
        return step > 0 and self.micro_batches(step) != self.micro_batches(step - 1)

    def next_change(self, step: int) -> int | None:
        """The first step after `step` that takes another number of micro-batches, or None."""
        return next((start for start in self._starts() if start > step and self.changes_at(start)), None)

    @property
    def largest(self) -> int:
        """Micro-batches of the largest step."""
        return self.accum_steps * max(self.multiples)

    def _starts(self) -> list[int]:
        return [self.total_steps * i // len(self.multiples) for i in range(len(self.multiples))]

    def _stage(self, step: int) -> int:
        return sum(step >= start for start in self._starts()) - 1


class TrainingWindows:
    """Windows of `seq_len + chunk` bytes: `seq_len` inputs, and the bytes that follow each of them."""

    def __init__(self, data: ByteSequence, seq_len: int, chunk: int, seed: int) -> None:
        usable = len(data) - chunk
        if usable < seq_len:
            raise ValueError(f"{len(data)} bytes hold no window of {seq_len} + {chunk}")
        self.data = data
        self.length = seq_len + chunk
        self.seq_len = seq_len
        self.seed = seed
        self.per_pass = max(1, (usable - (seq_len - 1)) // seq_len)
        self.phases = min(seq_len, usable - self.per_pass * seq_len + 1)

    def offsets(self, first: int, count: int) -> np.ndarray:
        """Corpus offsets [count] of the windows number `first`, `first + 1`, ... since the start of training."""
        number = np.arange(first, first + count, dtype=np.int64)
        passes, index = np.divmod(number, self.per_pass)
        offsets = np.empty(count, np.int64)
        for p in np.unique(passes):
            here = passes == p
            phase = int(_mix(np.uint64(self.seed), np.uint64(2 * p))) % self.phases
            order = permute(index[here], self.per_pass, int(_mix(np.uint64(self.seed), np.uint64(2 * p + 1))))
            offsets[here] = phase + order * self.seq_len
        return offsets

    def batch(self, first: int, micro_batches: int, batch_size: int, rows: slice = slice(None)) -> np.ndarray:
        """Windows number `first` and on, for one optimizer step: uint8 [micro_batches, batch_size, seq_len + chunk].

        However a step's windows are split into micro-batches, they are the same windows in the same order.

        Args:
            first: number of the step's first window.
            micro_batches: how many there are in the step.
            batch_size: windows of a micro-batch.
            rows: which windows of every micro-batch to read, for one of several processes that share a batch; no
                others are.
        """
        offsets = self.offsets(first, micro_batches * batch_size).reshape(micro_batches, batch_size)[:, rows]
        return windows_at(self.data, offsets.ravel(), self.length).reshape(*offsets.shape, self.length)


class EvaluationBatch(NamedTuple):
    """Windows uint8 [B, seq_len + chunk], and how many bytes of each are data (the rest is zero padding)."""

    windows: np.ndarray
    valid: np.ndarray


def evaluation_batches(data: ByteSequence, seq_len: int, chunk: int, batch_size: int) -> Iterator[EvaluationBatch]:
    """Non-overlapping windows over all of `data`, in order: every byte but the first is a next-byte target once.

    The last window and the last batch are padded to full size, with `valid` saying where the data ends.
    """
    starts = range(0, len(data) - 1, seq_len)
    length = seq_len + chunk
    for first in range(0, len(starts), batch_size):
        windows = np.zeros((batch_size, length), np.uint8)
        valid = np.zeros(batch_size, np.int32)
        for row, start in enumerate(starts[first : first + batch_size]):
            piece = np.asarray(data[start : start + length])
            windows[row, : len(piece)] = piece
            valid[row] = len(piece)
        yield EvaluationBatch(windows, valid)


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Images of `index` under a pseudo-random permutation of 0..n-1, without a table of it.

    A four-round Feistel network permutes the next larger power of four; values that fall outside 0..n-1 are sent
    through it again until they do not (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains").
    """
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    values = index.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(right, np.uint64((key + turn) % 2**64)) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= n
    return values.astype(np.int64)


def _mix(value: np.ndarray | np.uint64, key: np.uint64) -> np.ndarray | np.uint64:
    """A well-mixed 64-bit hash of (value, key): the SplitMix64 finaliser."""
    with np.errstate(over="ignore"):
        z = value + (key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
