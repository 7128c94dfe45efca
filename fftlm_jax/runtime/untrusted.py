"""Text, files and folders that others wrote: bounded, checked and shown without harm.

A link could lead out of a run directory, so that reading discloses and writing destroys what lies there. A pickle runs
code when it is opened. An array can be declared larger than any memory, in a few bytes. A manifest's hashes say nothing
about malice: whoever changes a file can write its hash anew. Not guarded against: somebody who changes a folder while
it is in use.

A run directory may come from a stranger. What is in it can be wrong in any way, but it must not hang, fill the memory,
drive a terminal, or end in a traceback.
"""

import hashlib
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fftlm_jax.runtime.errors import CheckpointError

_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".dill", ".joblib")
# Zeros, as in the moments of bytes that never occurred, are compressed to next to nothing; most numbers hardly at all.
_EXPANSION, _ALLOWANCE = 64, 64 << 20


def require_contained(root: Path) -> None:
    """Refuses a run directory with a link that leads out of it.

    Raises:
        CheckpointError: naming the link.
    """
    root = root.resolve()
    for folder, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise CheckpointError(
                    f"{root}: {shown(path.relative_to(root).as_posix())} is a link that leads out of the run "
                    "directory; put what it points to in its place, or remove it."
                )


def step_files(directory: Path) -> tuple[set[str], str | None]:
    """The files of a step's folder by their names in it, and what is in there that no step has, in words."""
    if directory.is_symlink():
        return set(), "it is a link, not a folder"
    names = set()
    for folder, folders, files in os.walk(directory):
        inner = os.path.relpath(folder, directory)
        for name in sorted([*folders, *files]):
            path = name if inner == "." else f"{inner}/{name}"
            if os.path.islink(os.path.join(folder, name)):
                return set(), f"{shown(path)} is a link, and a saved step has none"
            if name.lower().endswith(_PICKLES):
                return set(), f"{shown(path)} is a pickle, which may run code when opened, and a saved step has none"
            if name in files:
                names.add(path)
    return names, None


def is_inner_name(name: str) -> bool:
    """Whether a name that a file gives stays in the folder that it is looked up in."""
    return "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def require_plausible(directory: Path, declared: Mapping[str, Any]) -> None:
    """Refuses arrays that are declared far larger than what their files could hold.

    Args:
        directory: folder of their files.
        declared: their metadata by name: shape, dtype and storage.

    Raises:
        CheckpointError: naming the largest array.
    """
    on_disk = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    sizes = {name: _bytes_to_read(array) for name, array in declared.items()}
    limit = _EXPANSION * on_disk + _ALLOWANCE
    if sum(sizes.values()) > limit:
        name = max(sizes, key=sizes.__getitem__)
        raise CheckpointError(
            f"{directory}: declares arrays of {sum(sizes.values()):.1e} bytes ({shown(name)} alone {sizes[name]:.1e}), "
            f"more than files of {on_disk} bytes can hold; nothing was read."
        )


def _bytes_to_read(array: Any) -> int:
    chunk = getattr(getattr(array, "storage", None), "chunk_shape", None) or ()
    return max(math.prod(array.shape), math.prod(chunk)) * np.dtype(array.dtype).itemsize


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


_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-9:;<=>?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_ENCODINGS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))


def log_text(content: bytes) -> str:
    """A log as a person reads it: UTF-8, or UTF-16 where it begins with its mark, without colours.

    What is not of the encoding is replaced.
    """
    encoding = next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8")
    return _ESCAPE_SEQUENCE.sub("", content.decode(encoding, errors="replace"))


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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


def read_json_object(file: Path) -> dict[str, Any]:
    """Parses a JSON file that holds an object.

    Raises:
        OSError, ValueError: as `read_json`, and if it holds anything else.
    """
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"it says {name}, which is no JSON")
