"""Fetches public texts that papers compare on, and says how they are split.

    fftlm download enwik8
    python main.py --config=configs/aligned.py --config.data.source=enwik8

The only part of this package that uses the network, and only when it is asked to. A download that was cut off is
resumed, and what arrives must have the text's size and SHA-256.
"""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from fftlm_jax.data.formats import Format, documents
from fftlm_jax.data.unpacked import AUTO, ReadingProgress, cache_folder
from fftlm_jax.runtime.errors import DataError
from fftlm_jax.runtime.process import CommandParser, run_command
from fftlm_jax.runtime.untrusted import file_sha256


class PublicText(NamedTuple):
    """A text, where it is, how to know it, and how it is split."""

    url: str
    size: int  # Bytes of the text itself.
    sha256: str
    is_zipped: bool
    borders: tuple[int, int] | None  # End of the training part and of the held-out part; None for data.held_out.
    split: str  # The same in words, and where results are comparable.


_WIKIPEDIA = (90_000_000, 95_000_000)
TEXTS = {
    "enwik8": PublicText(
        "http://mattmahoney.net/dc/enwik8.zip",
        100_000_000,
        "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        True,
        _WIKIPEDIA,
        "the usual split: 90 million bytes, 5 of validation (held out here) and 5 of test (never used: enwik8.test), "
        "comparable with published bits per byte of validation",
    ),
    "text8": PublicText(
        "http://mattmahoney.net/dc/text8.zip",
        100_000_000,
        "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
        True,
        _WIKIPEDIA,
        "the usual split: 90 million bytes, 5 of validation (held out here) and 5 of test (never used: text8.test), "
        "comparable with published bits per character of validation",
    ),
    "tinyshakespeare": PublicText(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        False,
        None,
        "its end is held out: a tenth, as in nanoGPT, unless data.held_out says otherwise",
    ),
}
_PIECE = 1 << 16
_SECONDS = 60  # Without a byte, after which a connection counts as lost.


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    parser = CommandParser("fftlm download", __doc__)
    parser.add_argument("name", choices=sorted(TEXTS), help="which text")
    parser.add_argument("--cache", default=AUTO, help="folder to put it in: data.cache of the runs that use it")
    args = parser.parse_args(arguments)
    return run_command(lambda: print(fetch(args.name, cache_folder(args.cache, os.environ))))


def downloaded(name: str, cache: Path) -> Path:
    """A text that was fetched before.

    Raises:
        DataError: if it was not.
    """
    file = cache / name
    if not file.is_file() or file.stat().st_size != TEXTS[name].size:
        raise DataError(f"data.source: {name} is not in {cache}; fetch it once with: fftlm download {name}")
    return file


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
        cache.mkdir(parents=True, exist_ok=True)
        packed = pooch.retrieve(
            text.url, known_hash=None if text.is_zipped else text.sha256, fname=f"{name}.download", path=cache,
            downloader=_Resumed(cache / f"{name}.part"),
        )  # fmt: skip
        _take_out(Path(packed), text, file)
    except (OSError, ValueError) as error:
        (cache / f"{name}.download").unlink(missing_ok=True)
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
