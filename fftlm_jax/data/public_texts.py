"""Public texts that papers compare on: where they are, how to know them, and how they are split.

Nothing here uses the network; `download.py` fetches them.
"""

from pathlib import Path
from typing import NamedTuple

from fftlm_jax.runtime.errors import DataError


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


def downloaded(name: str, cache: Path) -> Path:
    """A text that was fetched before.

    Raises:
        DataError: if it was not.
    """
    file = cache / name
    if not file.is_file() or file.stat().st_size != TEXTS[name].size:
        raise DataError(f"data.source: {name} is not in {cache}; fetch it once with: fftlm download {name}")
    return file
