"""What a run says on the console and in `run.log`, and files that a full disk makes late but never torn.

Files that a run appends to and can do without: a full disk makes them late or short, never torn, and ends nothing.

What cannot be written is kept in memory and tried again with whatever comes next. That is a few hundred bytes a step;
a disk that stays full ends the run at its checkpoints long before it matters.
"""

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from fftlm_jax.runtime.process import request_stop
from fftlm_jax.runtime.streams import discard_output, is_terminal, print_line
from fftlm_jax.runtime.untrusted import printable

_BUFFER = 8192  # Bytes that wait for company before they are written.


class Tolerance:
    """Turns failures to write into one warning per file.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Lets the body fail to write `name`."""
        try:
            yield
        except OSError as error:
            if name not in self._said:
                self._said.add(name)
                reason = error.strerror or error
                self._say(f"WARNING: {name} cannot be written ({reason}). Training goes on; later writes are tried.")


class AppendedFile:
    """A file of whole entries. Its own file descriptor: nothing of an entry is ever left in a buffer of Python's.

    Args:
        file: its path.
        size: bytes to keep of what there is; the rest, and an entry that was cut short by a crash, is cut off.
    """

    def __init__(self, file: Path, size: int | None = None) -> None:
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        found = os.fstat(self._file).st_size
        self._written = _end_of_last_line(self._file, found if size is None else min(size, found))
        if self._written < found:
            os.ftruncate(self._file, self._written)
        self._waiting = bytearray()

    def add(self, entry: str) -> None:
        """Appends an entry of whole lines, now or soon.

        Raises:
            OSError: if what waits could not be written; it waits on.
        """
        self._waiting += entry.encode("utf-8", errors="backslashreplace")
        if len(self._waiting) >= _BUFFER:
            self.write_out()

    def write_out(self) -> None:
        """Hands what waits to the system: all of it, or the file stays as it was.

        Raises:
            OSError: if it does not take it.
        """
        if not self._waiting:
            return
        begun = self._written
        if os.fstat(self._file).st_size > begun:
            os.ftruncate(self._file, begun)  # Left by a write that failed, where even this failed.
        try:
            done = 0
            while done < len(self._waiting):
                count = os.write(self._file, memoryview(self._waiting)[done:])
                if not count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += count
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, begun)
            raise
        self._written = begun + done
        self._waiting.clear()

    def sync(self) -> None:
        """Brings everything to disk.

        Raises:
            OSError: if that fails.
        """
        self.write_out()
        os.fsync(self._file)

    @property
    def size(self) -> int:
        """Bytes of the file, with what waits to be written."""
        return self._written + len(self._waiting)

    def close(self) -> None:
        """Writes what waits, if it can be written, and closes the file."""
        try:
            self.write_out()
        finally:
            os.close(self._file)


def _end_of_last_line(file: int, size: int) -> int:
    """The last place, at most `size`, at which a line has ended."""
    while size:
        start = max(0, size - _BUFFER)
        newline = os.pread(file, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0


class Console:
    """Prints lines without breaking the progress bar, and appends them to a log file.

    `tolerance` is for whatever else of a run may fail to be written; its warnings are printed.
    """

    def __init__(self, log: Path | None = None) -> None:
        self.tolerance = Tolerance(self._print)
        self._bar: tqdm | None = None
        self._log: AppendedFile | None = None
        if log:
            with self.tolerance.of(log.name):
                self._log = AppendedFile(log)

    def say(self, line: str) -> None:
        """Prints one line, and logs it with the time of day; neither can drive a terminal."""
        line = printable(line)
        self._print(line)
        if self._log:
            with self.tolerance.of("run.log"):
                self._log.add(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
                self._log.write_out()

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        try:
            print_line(line, sys.stdout)
        except BrokenPipeError:
            discard_output()  # A reader such as `head` has seen enough: the run is saved and ends.
            if not request_stop(signal.SIGPIPE):
                raise
        except OSError:
            pass  # Standard output goes to a full disk. It keeps the line for later, and run.log has it.
        if self._bar is not None:
            self._bar.refresh()

    def start_progress(self, done: int, total: int) -> None:
        """Shows a progress bar on a terminal; does nothing elsewhere."""
        if is_terminal(sys.stderr):
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, leave=False, smoothing=0.05)

    def advance(self, loss: float) -> None:
        """Counts one step on the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss={loss:.3f}", refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Removes the bar and closes the log."""
        if self._bar is not None:
            self._bar.close()
        if self._log:
            with self.tolerance.of("run.log"):
                self._log.close()


def duration(seconds: float) -> str:
    """Seconds as 5s, 3m05s or 2h03m."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
