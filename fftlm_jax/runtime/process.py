"""The process: command lines and how commands end, signals, and malloc."""

import argparse
import contextlib
import ctypes
import errno
import importlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from absl import logging

from fftlm_jax.runtime.errors import RunError, UsageError
from fftlm_jax.runtime.paths import local_path
from fftlm_jax.runtime.streams import discard_output, prepare_streams, print_error, print_line
from fftlm_jax.runtime.untrusted import printable


class CommandParser(argparse.ArgumentParser):
    """A command line that ends as all commands do: help with exit code 0, a mistake as one line with exit code 1.

    Args:
        prog: what is typed, such as "fftlm generate".
        text: what the command does and writes: the docstring of its module, which `python -OO` strips.
    """

    def __init__(self, prog: str, text: str | None) -> None:
        first, _, rest = (text or "").strip().partition("\n\n")
        super().__init__(prog, None, first, rest, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line."""
        self.exit(UsageError.exit_code, f"UsageError: {printable(message)} (see {self.prog} --help).\n")

    def print_help(self, file: Any = None) -> None:
        """Prints the help; ends the process with one line where that cannot be written."""
        if code := run_command(lambda: print_line(self.format_help(), file or sys.stdout, end="")):
            self.exit(code)

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
            try:
                args.workdir = local_path(named if args.workdir is None else args.workdir, "RUN")
            except UsageError as error:
                self.error(str(error))
            self._import(vars(args).pop("modules"))
        return args


def path_option(text: str) -> Path:
    """The type of a command's options and arguments that are paths."""
    try:
        return local_path(text, "the path")
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("the path: ")) from None


def import_from_here() -> None:
    """Lets modules of the current folder be imported, as `python` does and an installed script does not."""
    with contextlib.suppress(FileNotFoundError):  # A folder that was deleted has no modules.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """Context manager: no warning ends a command. Under `PYTHONWARNINGS=error`, those of libraries would."""
    with warnings.catch_warnings():
        if any(action == "error" for action, *_ in warnings.filters):
            warnings.simplefilter("default")
        yield


@contextlib.contextmanager
def orbax_quiet() -> Iterator[None]:
    """Context manager: orbax, which narrates every read and save, prints nothing; its errors are raised as well."""
    logging.set_verbosity(logging.FATAL)
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # Of writes under way when another one failed.
            report(unraisable)

    sys.unraisablehook = report_others
    try:
        yield
    finally:
        sys.unraisablehook = report


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def run_command(action: Callable[[], int | None]) -> int:
    """Runs `action`; returns its exit code (None is 0), or that of the `RunError` it raised, printed as one line.

    Standard output that nobody reads any more is no error; one that cannot be written is. Ctrl-C ends the command
    without a word, with exit code 130.
    """
    prepare_streams()
    os.environ["MPLBACKEND"] = "Agg"  # Commands open no window, whatever the environment asks for, or names and lacks.
    try:
        with warnings_shown(), orbax_quiet():
            code = action()
        if not getattr(sys.stdout, "closed", False):
            sys.stdout.flush()
        return code or 0
    except RunError as error:
        print_error(f"{type(error).__name__}: {printable(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # Whoever reads, such as `head`, has seen enough.
        discard_output()
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        discard_output()
        print_error(f"UsageError: standard output cannot be written ({error.strerror}); send it elsewhere.")
        return UsageError.exit_code


# Ctrl-C and `kill` are always obeyed. The others are a dropped terminal (SIGHUP), what schedulers send before they
# kill (SIGUSR1, SIGUSR2), and spent processor time (SIGXCPU); `nohup` and programs around this one may want them.
_ALWAYS = ("SIGINT", "SIGTERM")
_UNLESS_TAKEN = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
_active: list["Interrupts"] = []


def request_stop(number: int) -> bool:
    """Has every run of this process finish its step, save and leave, as if signal `number` had come.

    Returns:
        Whether there is one.
    """
    for interrupts in _active:
        interrupts.requested = interrupts.requested or number
    return bool(_active)


def stop_requested() -> int | None:
    """The number of the signal that asked a run of this process to stop, if one did: for long work before its steps."""
    return next((interrupts.requested for interrupts in _active if interrupts.requested), None)


def _is_taken(number: int) -> bool:
    """Whether a signal is ignored, or handled by the program around this one.

    Python does not know of handlers of native code, such as `faulthandler.register` sets; Linux tells.
    """
    if signal.getsignal(number) != signal.SIG_DFL:
        return True
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


class Interrupts:
    """Context manager for signals that end a process: the first asks the loop to finish its step, save and leave.

    A second one has its usual effect: it leaves at once. A signal that is ignored (`nohup`), or that the program around
    this one handles, stays so, but for SIGINT and SIGTERM.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # Elsewhere Python refuses to set handlers.
            for name in (*_ALWAYS, *_UNLESS_TAKEN):
                number = getattr(signal, name, None)  # Windows has few of them.
                if number and (name in _ALWAYS or not _is_taken(number)):
                    previous = signal.signal(number, self._request)
                    # None is a handler of native code, which Python cannot put back.
                    self._previous[number] = signal.SIG_DFL if previous is None else previous
        _active.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _active.remove(self)
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
