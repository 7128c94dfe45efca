"""Formats that texts come in: read as bytes or as documents, a piece at a time, with bounds on what they expand to.

Formats go by the name of a file: `.gz`, `.bz2`, `.xz` and `.zst` around anything but `.zip` and `.parquet`; `.jsonl`
(or `.ndjson`), `.parquet` and `.zip` hold documents. Everything else is bytes. Content is never trusted: a file that
expands far beyond what text does is refused after a fraction of a second, whatever it declares.
"""

import bz2
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fftlm_jax.runtime.errors import DataError
from fftlm_jax.runtime.untrusted import shown, shown_name

_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_JSON_LINES = (".jsonl", ".ndjson")
_PIECE = 1 << 20  # Bytes that are expanded at a time.
# Compressed bytes at a time. What zstandard makes of them comes at once, some 30,000 bytes of each.
_PACKED_PIECE, _ZSTD_PIECE = 1 << 16, 1 << 12
# Text is compressed 3 to 30 times, logs up to 100 times.
_LARGEST_RATIO, _ALLOWANCE = 100, 64 << 20
_LONGEST_DOCUMENT = 256 << 20  # Bytes.
_ROWS = 256  # Of a Parquet file at a time.
_TEXT_TYPE = re.compile("(large_)?(string|binary)(_view)?")  # Of a column, or of the entries of its dictionary.

Advance = Callable[[int], None]  # Told how many bytes of a file were read.


class Format(NamedTuple):
    """How a file is read: what it is compressed with ("" for nothing), and whether it holds documents."""

    compression: str
    content: str  # bytes, jsonl, parquet or zip.

    @property
    def is_plain(self) -> bool:
        """Whether the file's own bytes are the text."""
        return self == Format("", "bytes")


def format_of(name: str, text_field: str) -> Format:
    """The format of a file by its name; without a `text_field` files of documents are bytes like any others."""
    path = Path(name.lower())
    compression = path.suffix if path.suffix in _COMPRESSIONS else ""
    inner = Path(path.stem).suffix if compression else path.suffix
    if inner in _JSON_LINES and text_field:
        return Format(compression, "jsonl")
    if not compression and (inner == ".zip" or (inner == ".parquet" and text_field)):
        return Format("", inner[1:])
    return Format(compression, "bytes")


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, raw: BinaryIO, advance: Advance) -> None:
        self._raw, self._advance, self.count = raw, advance, 0

    def read(self, size: int) -> bytes:
        found = self._raw.read(size)
        self.count += len(found)
        self._advance(len(found))
        return found


def read_pieces(file: Path, compression: str, advance: Advance) -> Iterator[bytes]:
    """The content of a file that may be compressed, a piece at a time.

    Raises:
        DataError: for a file that cannot be read, is cut short or damaged, or expands as no text does.
    """
    written = 0
    try:
        with open(file, "rb") as raw:
            counted = _Counted(raw, advance)
            for piece in _expanded(counted, compression):
                written += len(piece)
                if compression:
                    _require_text_ratio(file, written, counted.count)
                yield piece
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(file, getattr(error, "strerror", None) or str(error)) from None


def _expanded(counted: _Counted, compression: str) -> Iterator[bytes]:
    if compression == ".zst":
        zstandard = _extra("zstandard", ".zst")
        try:
            yield from _streams(counted, lambda: zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj())
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
    elif compression:
        begin = {".gz": lambda: zlib.decompressobj(31), ".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor}
        yield from _streams(counted, begin[compression], _PIECE)
    else:
        yield from iter(lambda: counted.read(_PIECE), b"")


def _streams(counted: _Counted, begin: Callable[[], Any], *bound: int) -> Iterator[bytes]:
    """The content of streams one behind the other. Zeros after one are padding, as of tapes; nothing else may follow.

    The readers of the standard library differ in this: some pass over whatever follows, without a word.

    Args:
        counted: the file.
        begin: makes the decompressor of a stream.
        bound: bytes to expand to at a time, of decompressors that can be told.
    """
    stream, has_ended = None, False
    while left := counted.read(_PACKED_PIECE if bound else _ZSTD_PIECE):
        while left or not getattr(stream, "needs_input", True):
            if stream is None:
                left = left.lstrip(b"\0") if has_ended else left
                if not left:
                    break
                stream = begin()
            if piece := stream.decompress(left, *bound):
                yield piece
            has_ended = stream.eof
            left = stream.unused_data if has_ended else getattr(stream, "unconsumed_tail", b"")
            stream = None if has_ended else stream
    if stream is not None:
        raise EOFError("it ends in the midst of a stream")


def documents(file: Path, found: Format, text_field: str, advance: Advance) -> Iterator[bytes]:
    """The documents of a file, in order; empty ones are passed over.

    Raises:
        DataError: as `read_pieces`, and for what is no document, with its place in the file.
    """
    if found.content == "jsonl":
        return _json_lines(file, found.compression, text_field, advance)
    if found.content == "parquet":
        return _parquet_rows(file, text_field, advance)
    return _zip_members(file, text_field, advance)


def _json_lines(file: Path, compression: str, text_field: str, advance: Advance) -> Iterator[bytes]:
    return _documents_of_lines(_lines(read_pieces(file, compression, advance), file), file, text_field)


def _documents_of_lines(lines: Iterator[bytes], file: Path, text_field: str) -> Iterator[bytes]:
    for number, line in enumerate(lines, start=1):
        encoding = json.detect_encoding(line) if number == 1 else "utf-8"  # By its mark or by its zeros.
        if not encoding.startswith("utf-8"):
            name = re.sub("-([BL]E)", r"\1", encoding.upper())
            raise DataError(f"data.path: {file} is {name}; convert it to UTF-8 (iconv -f {name} -t UTF-8).")
        line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if not line:
            continue
        where = f"data.path: {file} line {number}"
        try:
            text = json.loads(line)[text_field]
        except KeyError:
            names = ", ".join(shown_name(name) for name in list(json.loads(line))[:10])
            raise DataError(f"{where} has no {text_field!r} but {names}; set data.text_field.") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where} is not UTF-8 (byte {line[error.start]:#04x}); convert it (of Latin-1: iconv -f L1 -t UTF-8)."
            ) from None
        except (ValueError, TypeError, RecursionError):
            raise DataError(
                f"{where} is no JSON object; mend it, or read the file as it is by its plain name."
            ) from None
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: {text_field!r} is {shown(text)} and no text; set data.text_field.")
        if text:
            yield text.encode("utf-8", errors="surrogatepass")


def _lines(pieces: Iterator[bytes], file: Path) -> Iterator[bytes]:
    begun: list[bytes] = []
    size = 0
    for piece in pieces:
        first, *others = piece.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > _LONGEST_DOCUMENT:
            raise DataError(
                f"data.path: {file} has a line of more than {_LONGEST_DOCUMENT >> 20} MiB; is it JSON lines?"
            )
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun, size = [others[-1]], len(others[-1])
    yield b"".join(begun)


def _parquet_rows(file: Path, text_field: str, advance: Advance) -> Iterator[bytes]:
    pyarrow, parquet = _extra("pyarrow", ".parquet"), _extra("pyarrow.parquet", ".parquet")
    size, written = file.stat().st_size, 0
    try:
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PIECE) as opened:
            names = opened.schema_arrow.names
            if text_field not in names:
                listed = ", ".join(shown_name(name) for name in names[:10])
                raise DataError(f"data.path: {file} has no column {text_field!r} but {listed}; set data.text_field.")
            if names.count(text_field) > 1:
                raise DataError(f"data.path: {file} has {names.count(text_field)} columns {text_field!r}; rename one.")
            kind = opened.schema_arrow.field(text_field).type
            if not _TEXT_TYPE.fullmatch(str(kind.value_type if pyarrow.types.is_dictionary(kind) else kind)):
                raise DataError(f"data.path: {file}: column {text_field!r} is {kind} and no text; set data.text_field.")
            rows = max(opened.metadata.num_rows, 1)
            for batch in opened.iter_batches(batch_size=_ROWS, columns=[text_field]):
                advance(round(size * batch.num_rows / rows))
                # By its name: fields of structs that are called `a` come along with a column that is called `a.b`.
                for document in batch.column(text_field).cast(pyarrow.large_binary()).to_pylist():
                    if document:
                        written += len(document)
                        yield document
                _require_text_ratio(file, written, size)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, getattr(error, "strerror", None) or str(error)) from None


def _zip_members(file: Path, text_field: str, advance: Advance) -> Iterator[bytes]:
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as opened:
            members = [m for m in sorted(opened.infolist(), key=lambda m: m.filename) if not m.is_dir()]
            _require_text_ratio(file, sum(member.file_size for member in members), size)
            for member in members:
                if member.flag_bits & 1:
                    raise DataError(f"data.path: {file}: {shown(member.filename)} is encrypted; decrypt it first.")
                if any(part.startswith((".", "__MACOSX")) for part in Path(member.filename).parts):
                    continue
                kind = format_of(member.filename, text_field)
                if kind.compression or kind.content in ("parquet", "zip"):
                    raise DataError(
                        f"data.path: {file} holds {shown(member.filename)}, which is packed itself; unpack the archive "
                        "and name the folder."
                    )
                with opened.open(member) as content:
                    if kind.content == "jsonl":
                        pieces = iter(lambda: content.read(_PIECE), b"")
                        yield from _documents_of_lines(_lines(pieces, file), file, text_field)
                    elif document := content.read(_LONGEST_DOCUMENT + 1):
                        if len(document) > _LONGEST_DOCUMENT:
                            raise DataError(
                                f"data.path: {file}: {shown(member.filename)} is larger than "
                                f"{_LONGEST_DOCUMENT >> 20} MiB; unpack it and name the file."
                            )
                        yield document
                advance(member.compress_size)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(file, getattr(error, "strerror", None) or str(error)) from None


def _require_text_ratio(file: Path, written: int, read: int) -> None:
    if written > _LARGEST_RATIO * read + _ALLOWANCE:
        raise DataError(
            f"data.path: {file} expands more than {_LARGEST_RATIO} times ({written:,} bytes out of {read:,}), as no "
            "text does; expand it yourself if you trust it, and name what comes out."
        )


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(f"data.path: {file} is damaged or not what its name says ({reason}); fetch it again.")


def _extra(module: str, suffix: str) -> Any:
    """A module of the extra `data`."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"data.path: files that end in {suffix} need the package {module.split('.')[0]}: "
            'pip install "fftlm_jax[data]".'
        ) from None
