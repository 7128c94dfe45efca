"""What a run says: a progress bar with ETA on a terminal, plain lines otherwise, and the same lines in `run.log`."""

import sys
import time
from pathlib import Path

from tqdm import tqdm

from fftlm_jax.training.appended import AppendedFile, Tolerance
from fftlm_jax.untrusted import printable


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
            print(line, flush=True)
        except BrokenPipeError:
            raise
        except OSError:
            pass  # Standard output goes to a full disk. It keeps the line for later, and run.log has it.
        if self._bar is not None:
            self._bar.refresh()

    def start_progress(self, done: int, total: int) -> None:
        """Shows a progress bar on a terminal; does nothing elsewhere."""
        if sys.stderr.isatty():
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
