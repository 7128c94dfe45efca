"""Fetches a public text that papers compare on, for runs with data.source=NAME.

    fftlm download enwik8
    python main.py --config=configs/aligned.py --config.data.source=enwik8

The only part of this package that uses the network, and only when it is asked to. A download that was cut off is
resumed, and what arrives must have the text's size and SHA-256.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from fftlm_jax.data.formats import Format, documents
from fftlm_jax.data.public_texts import TEXTS, PublicText
from fftlm_jax.data.unpacked import AUTO, ReadingProgress, cache_folder
from fftlm_jax.runtime.errors import DataError
from fftlm_jax.runtime.paths import make_private
from fftlm_jax.runtime.process import CommandParser, run_command
from fftlm_jax.runtime.untrusted import file_sha256

_PIECE = 1 << 16
_SECONDS = 60  # Without a byte, after which a connection counts as lost.


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    parser = CommandParser("fftlm download", __doc__)
    parser.add_argument("name", choices=sorted(TEXTS), help="which text")
    parser.add_argument("--cache", default=AUTO, help="folder to put it in: data.cache of the runs that use it")
    args = parser.parse_args(arguments)
    return run_command(lambda: print(fetch(args.name, cache_folder(args.cache, os.environ))))


def fetch(name: str, cache: Path) -> Path:
    """Fetches a text, checks it, and writes its test part beside it where it has one; returns the file.

    Raises:
        DataError: if it cannot be fetched, or is not what it should be.
    """
    text, file = TEXTS[name], cache / name
    if file.is_file() and file_sha256(file) == text.sha256:
        return file
    try:
        import pooch
    except ImportError:
        raise DataError('fftlm download: needs the package pooch: pip install "fftlm_jax[data]".') from None
    try:
        make_private(cache)
        packed = pooch.retrieve(
            text.url, known_hash=None if text.is_zipped else text.sha256, fname=f"{name}.download", path=cache,
            downloader=_Resumed(cache / f"{name}.part"),
        )  # fmt: skip
        _take_out(Path(packed), text, file)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            (cache / f"{name}.download").unlink()
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{name}: cannot be fetched from {text.url} ({reason}); run the command again.") from None
    if text.borders:
        with open(file, "rb") as handle:
            handle.seek(text.borders[1])
            (cache / f"{name}.test").write_bytes(handle.read())
    return file


def _take_out(packed: Path, text: PublicText, file: Path) -> None:
    """Moves the text into its place, out of its archive if it is in one, once it is known to be the right one."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        if text.is_zipped:
            with open(temporary, "wb") as handle:
                for document in documents(packed, Format("", "zip"), "", lambda count: None):
                    handle.write(document)
        else:
            shutil.copyfile(packed, temporary)
        if temporary.stat().st_size != text.size or file_sha256(temporary) != text.sha256:
            raise ValueError(f"what arrived is not the text of {text.size:,} bytes and SHA-256 {text.sha256[:12]}...")
        temporary.replace(file)
        packed.unlink()
    finally:
        temporary.unlink(missing_ok=True)


class _Resumed:
    """A downloader for pooch that goes on where an earlier one was cut off."""

    def __init__(self, part: Path) -> None:
        self._part = part

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        import requests

        begun = self._part.stat().st_size if self._part.is_file() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
        with requests.get(url, headers=headers, stream=True, timeout=_SECONDS) as answer:
            if answer.status_code == 416:  # All of it was there.
                self._part.replace(output_file)
                return
            answer.raise_for_status()
            is_rest = answer.status_code == 206
            length = int(answer.headers.get("Content-Length", 0))
            with (
                open(self._part, "ab" if is_rest else "wb") as handle,
                ReadingProgress(f"fetching {url}", length + begun * is_rest) as progress,
            ):
                progress.advance(begun * is_rest)
                for piece in answer.iter_content(_PIECE):
                    handle.write(piece)
                    progress.advance(len(piece))
        if length and self._part.stat().st_size != length + begun * is_rest:
            raise OSError(f"the connection was lost at byte {self._part.stat().st_size:,}")
        self._part.replace(output_file)


if __name__ == "__main__":
    raise SystemExit(main())
