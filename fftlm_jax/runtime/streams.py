"""Standard streams as users have them: closed, full, without a reader, or in an encoding that lacks characters."""

import contextlib
import os
import sys
from typing import Any, TextIO

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def prepare_streams() -> None:
    """Makes the standard streams of this process usable; every command calls this first.

    A stream that is closed is replaced by the null device. Otherwise the next file that is opened would get its number,
    and messages of native code would be written into that file. Characters that the encoding of a stream lacks are
    escaped in place of ending the process.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            _open_null_device(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and not getattr(stream, "closed", False):
            stream.reconfigure(errors="backslashreplace")


def print_line(line: str, stream: TextIO | None) -> None:
    """Prints one line and flushes it, also where the encoding of the stream lacks characters; they are escaped.

    Args:
        line: without its newline.
        stream: where to; nothing is printed where it is None or closed.

    Raises:
        BrokenPipeError: if nobody reads the stream any more. OSError: if it cannot be written, as on a full disk.
    """
    if stream is None or getattr(stream, "closed", False):
        return
    try:
        print(line, file=stream, flush=True)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def print_error(line: str) -> None:
    """Prints one line on standard error, if that can be written: a message must not hide the exit code it explains."""
    with contextlib.suppress(OSError):
        print_line(line, sys.stderr)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is there and is a terminal."""
    if getattr(stream, "closed", False) or not hasattr(stream, "isatty"):
        return False
    return stream.isatty()


def discard_output() -> None:
    """Sends whatever is still printed on standard output to the null device, once nobody reads it or it is full.

    The interpreter flushes the stream when it exits, and would complain.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        _open_null_device(sys.stdout.fileno())


def _open_null_device(number: int) -> None:
    """Has a file descriptor lead to the null device."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
