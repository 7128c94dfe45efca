"""Texts that are not plain files, unpacked once into a folder and found there again.

What is unpacked is named by the SHA-256 of the packed file and of how it is read, and is checked by its own when it is
found again, so a changed or damaged file is unpacked anew. Documents are split here, each whole, by a hash of their
content: the same document is on the same side in every corpus, and repeated ones never fall on both.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fftlm_jax.data.formats import Format, documents, read_pieces
from fftlm_jax.runtime.errors import DataError, Interrupted
from fftlm_jax.runtime.paths import local_path, make_private, user_cache
from fftlm_jax.runtime.process import stop_requested
from fftlm_jax.runtime.streams import is_terminal, print_line
from fftlm_jax.runtime.untrusted import file_sha256, read_json

AUTO = "auto"
TRAIN, HELD_OUT, WHOLE = "train", "held_out", "whole"
_VERSION = 1  # Of what is written for a packed file.
_SECONDS = 10.0  # Between two lines where there is no terminal.
_ABANDONED = 86400.0  # Seconds without a change.


class TextOptions(NamedTuple):
    """How texts that are not plain files are read.

    Attributes:
        text_field: field of JSON lines, or column of Parquet files, that holds a document; "" to read them as bytes.
        separator: bytes between documents.
        cache: folder for what was unpacked, or `auto`.
    """

    text_field: str = "text"
    separator: str = "\n\n"
    cache: str = AUTO


AS_USUAL = TextOptions()


class Part(NamedTuple):
    """A plain file of a corpus; its label is part of the fingerprint, and its side is "" where it is not decided."""

    label: str
    file: Path
    side: str = ""


def cache_folder(setting: str, environment: Mapping[str, str]) -> Path:
    """The folder of what was unpacked and downloaded.

    Raises:
        UsageError: where there is no home folder to put it in.
    """
    if setting != AUTO:
        return local_path(setting, "data.cache")
    return user_cache(environment) / "fftlm_jax" / "texts"


def unpacked(label: str, file: Path, found: Format, held_out: float, options: TextOptions) -> list[Part]:
    """The plain files of a packed one: both sides of its documents, or the whole.

    Raises:
        DataError: for a file that cannot be read, or where nothing can be written. Interrupted: by a signal.
    """
    has_documents = found.content != "bytes"
    how = f"{_VERSION}\0{found}\0{held_out if has_documents else ''}\0"
    how += f"{options.text_field}\0{options.separator}" if has_documents else ""
    try:
        with ReadingProgress(f"checking {file.name}", file.stat().st_size) as progress:
            name = hashlib.sha256(how.encode(errors="surrogatepass") + _sha256(file, progress)).hexdigest()
    except OSError as error:
        raise DataError(
            f"data.path: {file} cannot be read ({error.strerror}); bring it back or leave it out."
        ) from None
    entry = cache_folder(options.cache, os.environ) / name
    if not _is_whole(entry):
        _write_entry(entry, file, found, held_out, options)
    return [Part(f"{label}#{side.name}", side, _side_of(side)) for side in sorted(entry.iterdir()) if _is_text(side)]


def _is_text(file: Path) -> bool:
    return file.name in (TRAIN, HELD_OUT, WHOLE)


def _side_of(file: Path) -> str:
    return "" if file.name == WHOLE else file.name


def _sha256(file: Path, progress: "ReadingProgress") -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
            progress.advance(len(piece))
    return digest.digest()


def _is_whole(entry: Path) -> bool:
    try:
        listed = read_json(entry / "sha256.json")
        return bool(listed) and all(file_sha256(entry / name) == value for name, value in listed.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _write_entry(entry: Path, file: Path, found: Format, held_out: float, options: TextOptions) -> None:
    """Unpacks beside the entry and renames. Nothing is synced: after a power cut the hashes do not match."""
    temporary = entry  # Until there is one.
    try:
        make_private(entry.parent)
        for left in entry.parent.glob(f"{entry.name}.*"):  # By processes that were killed; younger ones may be at work.
            with contextlib.suppress(FileNotFoundError):  # One that has just got its name.
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=entry.parent))
        with ReadingProgress(f"unpacking {file.name}", file.stat().st_size) as progress:
            if found.content == "bytes":
                _write(temporary / WHOLE, read_pieces(file, found.compression, progress.advance))
            else:
                _write_documents(temporary, file, found, held_out, options, progress)
        texts = {path.name: file_sha256(path) for path in temporary.iterdir()}
        (temporary / "sha256.json").write_text(json.dumps(texts))
        try:
            temporary.rename(entry)
        except OSError:
            if not _is_whole(entry):  # Else another process was faster, with the same bytes, and reads them already.
                shutil.rmtree(entry, ignore_errors=True)
                temporary.rename(entry)
    except OSError as error:
        raise DataError(
            f"data.cache: {entry.parent} cannot take what {file} unpacks to ({error.strerror}); name another folder."
        ) from None
    finally:
        if temporary != entry:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(target: Path, pieces: Iterator[bytes]) -> None:
    with open(target, "wb") as handle:
        for piece in pieces:
            handle.write(piece)


def _write_documents(
    folder: Path, file: Path, found: Format, held_out: float, options: TextOptions, progress: "ReadingProgress"
) -> None:
    """Writes both sides; a single document is written as a whole, to be cut like a plain file."""
    separator = options.separator.encode("utf-8", errors="surrogateescape")

    def split(is_held_out: Callable[[int, float], bool]) -> array:
        """Writes every document on the side that its number and its place in [0, 1) decide; returns the places."""
        places = array("d")
        with open(folder / TRAIN, "wb") as train, open(folder / HELD_OUT, "wb") as held:
            for number, document in enumerate(documents(file, found, options.text_field, progress.advance)):
                places.append(int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64)
                side = held if is_held_out(number, places[-1]) else train
                side.write(document)
                side.write(separator)
        return places

    places = split(lambda number, place: place < held_out)
    count = sum(place < held_out for place in places)
    if len(places) < 2:
        (folder / (HELD_OUT if count else TRAIN)).rename(folder / WHOLE)
        (folder / (TRAIN if count else HELD_OUT)).unlink()
        os.truncate(folder / WHOLE, max(0, (folder / WHOLE).stat().st_size - len(separator)))
    elif count in (0, len(places)):  # Then the document nearest to the border changes over.
        nearest = places.index(max(places) if count else min(places))
        split(lambda number, place: (number == nearest) == (count == 0))


class ReadingProgress:
    """Shows how much of something was read: a bar on a terminal, a line now and then elsewhere; ends it on a signal.

    Args:
        what: what is done, such as "unpacking a.jsonl.zst".
        total: bytes.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done, self._line = what, total, 0, time.monotonic() + _SECONDS
        options = {"unit": "B", "unit_scale": True, "leave": False, "delay": 3}
        self._bar = tqdm(total=total, desc=what, **options) if is_terminal(sys.stderr) else None

    def __enter__(self) -> "ReadingProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int) -> None:
        """Counts bytes.

        Raises:
            Interrupted: if a signal asked this process to stop.
        """
        self._done += count
        if number := stop_requested():
            raise Interrupted(f"stopped while {self._what}; nothing was lost", number)
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() > self._line:
            self._line = time.monotonic() + _SECONDS
            with contextlib.suppress(OSError):
                print_line(f"{self._what}: {self._done / max(self._total, 1):.0%}", sys.stdout)
