"""Child processes of a sweep: so many at a time, each on cores of its own, all given time to save when it must stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_ROOT = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 0.05


class Children:
    """Up to `jobs` children at a time. Use as a context manager: on an interrupt it waits for all to save.

    A Ctrl-C at the terminal reaches the children by itself; a SIGTERM is handed on.
    """

    def __init__(self, jobs: int) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = max(1, len(cores) // jobs)
        self._free = [set(cores[i * share : (i + 1) * share]) for i in range(jobs)]
        self.running: dict[int, tuple[subprocess.Popen, set[int], Path]] = {}

    def __enter__(self) -> "Children":
        self._previous = signal.signal(signal.SIGTERM, self._hand_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child, _, _ in self.running.values():
            child.wait()
        signal.signal(signal.SIGTERM, self._previous)
        if kind is KeyboardInterrupt:
            names = ", ".join(log.stem for _, _, log in self.running.values())
            sys.exit(f"stopped in {names}, saved; the same command goes on from there")

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, number: int, command: Sequence[str], log: Path, compile_cache: Path) -> None:
        """Starts a child, known by `number`, whose output is appended to `log`."""
        # Trials of an arm differ in their seed only: the second one need not compile again.
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compile_cache), "PYTHONPATH": str(_ROOT)}
        cores = self._free.pop()
        with log.open("a", encoding="utf-8") as file:
            child = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        if cores:  # From outside, long before the child has threads: code between fork and exec may deadlock.
            os.sched_setaffinity(child.pid, cores)
        self.running[number] = (child, cores, log)

    def wait(self) -> tuple[int, int]:
        """Waits for a child to end; returns its number and exit code."""
        while True:
            for number, (child, cores, _) in self.running.items():
                if child.poll() is not None:
                    del self.running[number]
                    self._free.append(cores)
                    return number, child.returncode
            time.sleep(_POLL_SECONDS)

    def _hand_on(self, number: int, frame: object) -> None:
        del frame
        for child, _, _ in self.running.values():
            child.send_signal(number)
        raise KeyboardInterrupt
