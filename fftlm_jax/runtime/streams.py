"""Standard streams as users have them: closed, full, without a reader, non-blocking, or lacking characters."""

import contextlib
import os
import sys
from typing import Any, TextIO

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def prepare_streams() -> None:
    """Makes the standard streams of this process usable; every command calls this first.

    A stream that is closed is replaced by the null device. Otherwise the next file that is opened would get its number,
    and messages of native code would be written into that file. A stream that does not block, as some programs hand
    down, is made to: Python would raise an error, or lose text, where its reader is slow. Characters that the encoding
    of a stream lacks are escaped in place of ending the process.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            _open_null_device(number)
        with contextlib.suppress(OSError, AttributeError):  # Windows has no such setting of streams.
            os.set_blocking(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and not getattr(stream, "closed", False):
            stream.reconfigure(errors="backslashreplace")


def print_line(line: str, stream: TextIO | None, end: str = "\n") -> None:
    """Prints one line and flushes it, also where the encoding of the stream lacks characters; they are escaped.

    Args:
        line: without its newline.
        stream: where to; nothing is printed where it is None or closed.
        end: what is printed behind the line.

    Raises:
        BrokenPipeError: if nobody reads the stream any more. OSError: if it cannot be written, as on a full disk.
    """
    if stream is None or getattr(stream, "closed", False):
        return
    try:
        print(line, end=end, file=stream, flush=True)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        print(line.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=True)


def print_error(line: str) -> None:
    """Prints one line on standard error, if that can be written: a message must not hide the exit code it explains."""
    with contextlib.suppress(OSError):
        print_line(line, sys.stderr)


def read_bytes(stream: Any, *, line: bool = False) -> bytes:
    """All bytes of an input stream, or one line of them; none where it is None or closed.

    Args:
        stream: a file, or what programs put in the place of one, which has text only; its UTF-8 is read then.
        line: read up to the next newline, with it.
    """
    if stream is None or getattr(stream, "closed", False):
        return b""
    source = getattr(stream, "buffer", stream)
    found = source.readline() if line else source.read()
    return found.encode("utf-8", "surrogateescape") if isinstance(found, str) else found


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
