"""The process: how commands end, signals, malloc, and XLA flags.

How every command of this package ends: an error is one line and an exit code, and a closed pipe is no error.

SIGINT and SIGTERM: the first asks the loop to finish its step, save and leave; a second leaves at once.

A setting of glibc's malloc that makes training on CPU up to twice as fast. It changes no bits.

XLA takes the temporaries of a program from malloc anew at every call. Blocks beyond 32 MiB glibc maps from the system
each time and gives back at once, so that every step pays for thousands of page faults: a third of the processor time
of a training step of `configs/shakespeare_cpu.py`. With a higher threshold the memory stays with the process.

XLA flags that pay on CPU, set before jax is imported and only where the user has set none.

Measured on two AVX-512 cores, jaxlib 0.10.2 and 0.12: together 10 to 20 % more training steps per second. They change
bits, so `env.json` records them. An unknown flag aborts the process, hence the gate on jaxlib's version.
"""

import ctypes
import importlib.metadata
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from types import FrameType

from absl import logging

from fftlm_jax.runtime.errors import RunError
from fftlm_jax.runtime.untrusted import printable


def run_command(action: Callable[[], None]) -> int:
    """Runs `action`; returns 0, or the exit code of the `RunError` it raised, which is printed as one line."""
    logging.set_verbosity(logging.ERROR)  # Orbax narrates every read and save at INFO and WARNING.
    try:
        action()
        sys.stdout.flush()
    except RunError as error:
        print(f"{type(error).__name__}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever reads, such as `head`, has seen enough. The interpreter must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class Interrupts:
    """Context manager that turns the first signal into a request and gives the second its usual effect."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # Elsewhere Python refuses to set handlers.
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        for n in self._previous:
            signal.signal(n, signal.SIG_DFL)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # From glibc's malloc.h.
_KEPT = 1 << 30  # Larger blocks are still mapped and given back one by one.
_NEVER_TRIM = 2**31 - 1


def keep_freed_blocks(environment: Mapping[str, str]) -> bool:
    """Lets this process keep freed blocks of up to 1 GiB for the next call.

    Does nothing outside glibc (macOS, Windows, musl) or where the user tunes malloc in `environment`.

    Returns:
        Whether it was set.
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in environment):
        return False
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # One arena: those that other threads would get hold at most 64 MiB, and larger blocks would be mapped after all.
    options = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _KEPT), (_M_TRIM_THRESHOLD, _NEVER_TRIM))
    return all([bool(mallopt(*option)) for option in options])


CPU_FLAGS = (
    "--xla_cpu_prefer_vector_width=512",
    "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT",
)
_KNOWN_SINCE, _TESTED_BEFORE = (0, 10), (0, 13)


def set_cpu_defaults(environment: MutableMapping[str, str]) -> None:
    """Adds `CPU_FLAGS` to `environment` unless it has XLA_FLAGS or this jaxlib was not tested with them."""
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    if "XLA_FLAGS" not in environment and _KNOWN_SINCE <= version < _TESTED_BEFORE:
        environment["XLA_FLAGS"] = " ".join(CPU_FLAGS)
