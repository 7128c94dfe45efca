"""Text and small files that others wrote: bounded before they are read, parsed as data, shown without harm.

A run directory may come from a stranger. What is in it can be wrong in any way, but it must not hang, fill the memory,
drive a terminal, or end in a traceback.
"""

import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any

LARGEST_JSON = 16 << 20  # Bytes; a config has some thousand, a manifest some ten thousand.

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = _SHORT.maxset = 8


def printable(text: str) -> str:
    """Text that cannot drive a terminal: all but printable characters and newlines as escapes.

    That takes away control characters, C1 too (U+0080 to U+009F), carriage returns, backspaces, the marks that turn the
    direction of writing, and halves of surrogate pairs.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """A value as an error message shows it: on one line, printable, cut where it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # A number of more digits than Python writes.
        return f"a {type(value).__name__} too long to show"


def shown_name(name: Any) -> str:
    """A key as an error message shows it: as it is where it can be one, quoted and cut elsewhere."""
    return name if isinstance(name, str) and name.isidentifier() and len(name) <= 80 else shown(name)


def read_bounded(file: Path, limit: int = LARGEST_JSON) -> bytes:
    """The content of a file of at most `limit` bytes; a pipe or a device is not opened.

    Raises:
        OSError: if it cannot be read. ValueError: if it is no file, or too large.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError("it is no regular file")
    with open(file, "rb") as handle:
        content = handle.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is longer than {limit} bytes")
    return content


def parse_json(content: bytes | str, *, nan: bool = False) -> Any:
    """Parses JSON.

    Args:
        content: text or its bytes.
        nan: take NaN and Infinity, which Python writes although JSON has none.

    Raises:
        ValueError: if it is none, or nested too deeply.
    """
    try:
        return json.loads(content) if nan else json.loads(content, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(file: Path, limit: int = LARGEST_JSON, *, nan: bool = False) -> Any:
    """Parses a JSON file of at most `limit` bytes.

    Raises:
        OSError, ValueError: as `read_bounded` and `parse_json`.
    """
    return parse_json(read_bounded(file, limit), nan=nan)


def _no_constant(name: str) -> None:
    raise ValueError(f"it says {name}, which is no JSON")
