"""What readers of a corpus need of it: its length, and its bytes from a place on, wherever they are kept."""

from typing import Protocol

import numpy as np


class ByteSequence(Protocol):
    """A uint8 array [bytes], or what is sliced like one and read by `np.asarray` (see `FileBytes`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice) -> "ByteSequence": ...

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray: ...


def windows_at(data: ByteSequence, offsets: np.ndarray, length: int) -> np.ndarray:
    """The `length` bytes from each of `offsets` [N] on, all of them inside the data: uint8 [N, length]."""
    windows = np.empty((len(offsets), length), np.uint8)
    for window, offset in zip(windows, offsets.tolist()):
        window[:] = np.asarray(data[offset : offset + length])
    return windows
