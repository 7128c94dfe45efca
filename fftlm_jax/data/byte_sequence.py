"""A corpus as a sequence of bytes, in memory or in its files.

Bytes that stay in their files until they are asked for, so that a corpus may be larger than memory.

They are read by position (`pread`) and not through memory maps: of a map whose file has become shorter, a touch ends
the process with SIGBUS, without a word; here it is an error that names the file. Left out: a change that leaves the
size alone goes unnoticed until the run is resumed, when the corpus's fingerprint is compared.
"""

import errno
import os
import stat
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from fftlm_jax.runtime.errors import DataError

# Of each corpus. Systems allow a process 256 or more, and a file that must be opened again costs microseconds.
_MOST_OPEN = 64


class Piece(NamedTuple):
    """Consecutive bytes of one file."""

    file: int  # Its number.
    start: int
    size: int


class OpenFiles:
    """Files that are read by position, from any thread, with a bounded number of them open at a time.

    The size that a file has at first is the size it must keep: a shorter one, or another in its place, is an error.
    What is appended to an open file does no harm.

    Args:
        files: what to read.
        setting: what named them, for messages.

    Raises:
        DataError: here and from `read`, when one of them cannot be read, with its name.
    """

    def __init__(self, files: Sequence[Path], setting: str) -> None:
        self._files = files
        self._setting = setting
        self._lock = threading.Lock()  # No other thread may close a descriptor that is being read.
        self._open: OrderedDict[int, int] = OrderedDict()  # Descriptors by number of the file, the latest used last.
        weakref.finalize(self, _close_all, self._open)
        self.sizes: list[int] = []
        for number in range(len(files)):
            try:
                self.sizes.append(os.fstat(self._descriptor(number)).st_size)
            except OSError as error:
                raise self._unreadable(number, error) from None

    def read(self, piece: Piece) -> bytes:
        """The bytes of a piece."""
        parts, at, end = [], piece.start, piece.start + piece.size
        with self._lock:
            try:
                descriptor = self._descriptor(piece.file)
                while at < end:
                    parts.append(os.pread(descriptor, end - at, at))  # May be fewer; none at the end of the file.
                    if not parts[-1]:
                        raise self._changed(piece.file, os.fstat(descriptor).st_size)
                    at += len(parts[-1])
            except OSError as error:
                raise self._unreadable(piece.file, error) from None
        return b"".join(parts)

    def _descriptor(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        found = os.stat(self._files[number])  # Before it is opened, which waits for the other end of a pipe.
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{self._setting}: {self._files[number]} is not a regular file; name a file.")
        if number < len(self.sizes) and found.st_size != self.sizes[number]:
            raise self._changed(number, found.st_size)
        if len(self._open) == _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        try:
            self._open[number] = os.open(self._files[number], os.O_RDONLY)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._open:
                raise
            _close_all(self._open)  # The process may have fewer than usual (`ulimit -n`), and others need some too.
            self._open.clear()
            self._open[number] = os.open(self._files[number], os.O_RDONLY)
        return self._open[number]

    def _changed(self, number: int, size: int) -> DataError:
        return DataError(
            f"{self._setting}: {self._files[number]} had {self.sizes[number]} bytes when it was first read and now has "
            f"{size}; bring the old bytes back and run the same command again."
        )

    def _unreadable(self, number: int, error: OSError) -> DataError:
        return DataError(
            f"{self._setting}: {self._files[number]} cannot be read ({error.strerror}); "
            "bring it back, mend its rights or leave it out."
        )


class FileBytes:
    """Pieces of files, one behind the other, as one sequence of bytes that is not in memory.

    As of an array, a slice is a view of the same bytes, across any number of files; `np.asarray` reads them.
    """

    def __init__(self, files: OpenFiles, pieces: Sequence[Piece]) -> None:
        self.files = files
        self._pieces = [piece for piece in pieces if piece.size]
        self._ends = list(accumulate(piece.size for piece in self._pieces))
        self._start, self._stop = 0, self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, where: slice) -> "FileBytes":
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"bytes of files are read in steps of 1, not {step}")
        view = FileBytes.__new__(FileBytes)
        view.files, view._pieces, view._ends = self.files, self._pieces, self._ends
        view._start, view._stop = self._start + start, self._start + max(start, stop)
        return view

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("bytes of files cannot be had without a copy")
        found = np.frombuffer(b"".join(map(self.files.read, self.pieces())), np.uint8)
        return found if dtype is None else found.astype(dtype)

    def pieces(self) -> Iterator[Piece]:
        """What of the files it consists of, in order."""
        at, index = self._start, bisect_right(self._ends, self._start)
        while at < self._stop:
            piece, end = self._pieces[index], self._ends[index]
            until = min(end, self._stop)
            yield Piece(piece.file, piece.start + piece.size - (end - at), until - at)
            at, index = until, index + 1


def joined(parts: Sequence[FileBytes]) -> FileBytes:
    """Several sequences of the same files, one behind the other."""
    return FileBytes(parts[0].files, [piece for part in parts for piece in part.pieces()])


def bytes_of_files(files: Sequence[Path], setting: str) -> FileBytes:
    """All bytes of some files, in this order; `setting` is what named them, for messages.

    Raises:
        DataError: if one of them cannot be opened; when read, if one cannot be read or is shorter by then.
    """
    opened = OpenFiles(files, setting)
    return FileBytes(opened, [Piece(number, 0, size) for number, size in enumerate(opened.sizes)])


def _close_all(descriptors: OrderedDict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


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
