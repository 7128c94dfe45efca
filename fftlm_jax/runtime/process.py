"""The process: command lines and how commands end, signals, malloc, and XLA flags."""

import argparse
import ctypes
import importlib
import importlib.metadata
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from types import FrameType
from typing import Any, NoReturn

from absl import logging

from fftlm_jax.runtime.errors import RunError, UsageError
from fftlm_jax.runtime.untrusted import printable


class CommandParser(argparse.ArgumentParser):
    """A command line that ends as all commands do: help with exit code 0, a mistake as one line with exit code 1.

    Args:
        prog: what is typed, such as "fftlm generate".
        text: what the command does and writes: the docstring of its module.
    """

    def __init__(self, prog: str, text: str) -> None:
        first, _, rest = text.strip().partition("\n\n")
        super().__init__(prog, None, first, rest, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line."""
        self.exit(UsageError.exit_code, f"UsageError: {printable(message)} (see {self.prog} --help).\n")

    def add_run(self, what: str = "run directory") -> None:
        """Adds the argument RUN, which may also be given as --workdir."""
        self.add_argument("workdir", nargs="?", metavar="RUN", help=what)
        self.add_argument("--workdir", dest="workdir_option", metavar="RUN", help="the same, by name")
        self.add_argument(
            "--import", dest="modules", action="append", default=[], metavar="MODULE",
            help="import this first, from here, such as a module that registers a mixer of your own",
        )  # fmt: skip

    def _import(self, modules: list[str]) -> None:
        if modules:
            import_from_here()
        for name in modules:
            try:
                importlib.import_module(name)
            except ImportError as error:
                self.error(f"--import: {name} cannot be imported ({error})")

    def parse_args(self, *arguments: Any) -> argparse.Namespace:
        """Parses, with RUN as `workdir` however it was given."""
        args = super().parse_args(*arguments)
        if hasattr(args, "workdir_option"):
            named = vars(args).pop("workdir_option")
            if (args.workdir is None) == (named is None):
                self.error("RUN: name one run directory")
            args.workdir = args.workdir or named
            self._import(vars(args).pop("modules"))
        return args


def import_from_here() -> None:
    """Lets modules of the current folder be imported, as `python` does and an installed script does not."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def run_command(action: Callable[[], int | None]) -> int:
    """Runs `action`; returns its exit code (None is 0), or that of the `RunError` it raised, printed as one line.

    A closed pipe is no error.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax narrates every read and save at INFO and WARNING.
    try:
        code = action()
        sys.stdout.flush()
        return code or 0
    except RunError as error:
        print(f"{type(error).__name__}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever reads, such as `head`, has seen enough. The interpreter must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class Interrupts:
    """Context manager for SIGINT and SIGTERM: the first asks the loop to finish its step, save and leave.

    A second one has its usual effect: it leaves at once.
    """

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
    """Lets this process keep freed blocks of up to 1 GiB for the next call: up to twice as fast on CPU, the same bits.

    XLA takes the temporaries of a program from malloc anew at every call. Blocks beyond 32 MiB glibc maps from the
    system each time and gives back at once, so that every step pays for thousands of page faults: a third of the
    processor time of a training step of `configs/shakespeare_cpu.py`. Kept, the memory stays with the process.

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
    """Adds `CPU_FLAGS` to `environment` unless it has XLA_FLAGS or this jaxlib was not tested with them.

    Measured on two AVX-512 cores, jaxlib 0.10.2 and 0.12: together 10 to 20 % more training steps per second. They
    change bits, so `env.json` records them. An unknown flag aborts the process, hence the gate on jaxlib's version.
    """
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    if "XLA_FLAGS" not in environment and _KNOWN_SINCE <= version < _TESTED_BEFORE:
        environment["XLA_FLAGS"] = " ".join(CPU_FLAGS)
