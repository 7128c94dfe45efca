"""What a run says: a progress bar with ETA on a terminal, plain lines otherwise, and the same lines in `run.log`."""

import sys
import time
from pathlib import Path

from tqdm import tqdm


class Console:
    """Prints lines without breaking the progress bar, and appends them to a log file."""

    def __init__(self, log: Path | None = None) -> None:
        self._log = log.open("a", encoding="utf-8") if log else None
        self._bar: tqdm | None = None

    def say(self, line: str) -> None:
        """Prints one line, and logs it with the time of day."""
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)
        if self._bar is not None:
            self._bar.refresh()
        if self._log:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            self._log.flush()

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
            self._log.close()


def duration(seconds: float) -> str:
    """Seconds as 5s, 3m05s or 2h03m."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
