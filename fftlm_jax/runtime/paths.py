"""Paths as users write them: `~` is their home, and a URL is no local path."""

import os
import re
from pathlib import Path

from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.untrusted import shown

_LONGEST_NAME = 255  # Bytes, of every file system in use.
# A scheme of two or more letters (C:/ is a drive); of its slashes `pathlib` leaves one.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(text: str | os.PathLike[str], setting: str) -> Path:
    """A path of this machine.

    Args:
        text: the path as a user gave it; a leading `~` or `~name` stands for a home folder.
        setting: the option or config key that holds it, for messages.

    Raises:
        UsageError: for a URL, an empty path, a null character, a name that is too long, a home that nobody has, or a
            relative path in a folder that was deleted.
    """
    path = os.fspath(text)
    if not path:
        raise UsageError(f"{setting}: is empty; name a path.")
    if "\0" in path:
        raise UsageError(f"{setting}: {shown(path)} holds a null character; name a path.")
    if _URL.match(path):
        raise UsageError(
            f"{setting}: {shown(path)} is a URL, not a local path; mount it or copy it, and name that path."
        )
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UsageError(f"{setting}: the home folder in {shown(path)} is not known; write the path in full.")
    long = next((part for part in Path(expanded).parts if len(os.fsencode(part)) > _LONGEST_NAME), None)
    if long is not None:
        raise UsageError(f"{setting}: {shown(long)} is longer than the {_LONGEST_NAME} bytes of a name; name a path.")
    if not os.path.isabs(expanded):
        try:
            os.getcwd()
        except FileNotFoundError:
            raise UsageError(
                f"{setting}: {shown(path)} is relative to a working folder that was deleted; change to another folder, "
                "or write the path in full."
            ) from None
    return Path(expanded)
