"""Text between a terminal and a model: what is shown, where it stops, and what the command line means."""

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from fftlm_jax.generation.sampling import DecodedBytes
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.untrusted import printable


class TerminalText:
    """Bytes as text that cannot drive a terminal: everything but printable characters and newlines is escaped.

    Fed piece by piece; a character of several bytes that a piece cuts in two is shown with the next one.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """The text of one more piece; `final` also gives what is left of a broken character."""
        return printable(self._decoder.decode(data, final))


def terminal_text(data: bytes) -> str:
    """The whole of some bytes, as `TerminalText` shows them."""
    return TerminalText().feed(data, final=True)


class StopStrings:
    """Ends a text right before the stop string that is complete first (of several that are, before the longest).

    Fed piece by piece; bytes that may turn out to begin a stop string are held back until that is known.
    """

    def __init__(self, stops: Sequence[bytes]) -> None:
        self._stops = stops
        self._held = b""
        self.stopped = False

    def feed(self, data: bytes) -> bytes:
        """What may be shown after one more piece: nothing more once stopped."""
        if self.stopped:
            return b""
        text = self._held + data
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, b""
            return text[: min(found)[1]]
        begun = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def finish(self) -> bytes:
        """What was held back, once nothing more will come."""
        held, self._held = self._held, b""
        return held


def until_stopped(blocks: Iterable[DecodedBytes], rows: int, stops: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The bytes of each row that may be shown, block by block, until every row has met a stop string or the end."""
    filters = [StopStrings(stops) for _ in range(rows)]
    for block in blocks:
        yield [row.feed(written) for row, written in zip(filters, block.written, strict=True)]
        if all(row.stopped for row in filters):
            return
    yield [row.finish() for row in filters]


def _overlap(text: bytes, stop: bytes) -> int:
    """Length of the longest beginning of `stop`, short of all of it, that `text` ends with."""
    return next(n for n in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:n]))


_ESCAPE = re.compile(rb"\\(n|t|r|0|\\|x[0-9A-Fa-f]{2})?")
_MEANING = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"0": b"\0", b"\\": b"\\"}


def argument_bytes(text: str, option: str, escapes: bool) -> bytes:
    """The bytes of a text as the shell passed them, or with its escapes read.

    Raises:
        UsageError: for an escape that means nothing.
    """
    data = os.fsencode(text)
    if not escapes:
        return data

    def meaning(found: re.Match[bytes]) -> bytes:
        if found[1] is None:
            raise UsageError(
                f"{option}: {text!r} has a backslash before what is no escape; write \\\\ for a backslash."
            )
        return _MEANING.get(found[1]) or bytes.fromhex(found[1][1:].decode())

    return _ESCAPE.sub(meaning, data)
