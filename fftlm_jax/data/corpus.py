"""Finds the files of a corpus, splits off the held-out part, and fingerprints it.

Plain files are not parsed: binary files and invalid UTF-8 are legal. Files are taken in sorted order, one behind the
other; packed ones are unpacked first. A small corpus is read into memory; of a larger one only what is asked for is
read, when it is.
"""

import hashlib
import os
import sysconfig
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fftlm_jax.config.schema import Config
from fftlm_jax.data.byte_sequence import ByteSequence, bytes_of_files, joined
from fftlm_jax.data.formats import format_of
from fftlm_jax.data.looks import SAMPLE, entropy_fault, is_pointer, what_it_looks_like
from fftlm_jax.data.public_texts import TEXTS, downloaded
from fftlm_jax.data.unpacked import AS_USUAL, HELD_OUT, Part, ReadingProgress, TextOptions, cache_folder, unpacked
from fftlm_jax.runtime.errors import DataError
from fftlm_jax.runtime.paths import local_path, matches

# Up to so many bytes a corpus is kept in memory, where nothing can happen to it and the smallest files cost nothing.
MEMORY_LIMIT = 128 << 20
_CHUNK = 1 << 20  # Bytes that are hashed at a time.

# Parts of the standard library that are not source one would want to model: tests, caches, third-party packages.
_STDLIB_SKIPPED = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}


class Corpus(NamedTuple):
    """Training and held-out bytes, a SHA-256 over names, sizes and contents, a line about it, and what looks wrong."""

    train: ByteSequence
    held_out: ByteSequence
    fingerprint: str
    description: str
    warnings: tuple[str, ...] = ()


def load_corpus(source: str, path: str, held_out: float, *, window: int, options: TextOptions = AS_USUAL) -> Corpus:
    """Loads and splits a corpus.

    Many files are split by a hash of their name, so that a file stays on its side when others come or go; of a single
    file the last part is held out. Files that hold documents are split by document, see `unpacked.py`; a public text
    as `public_texts.py` says.

    Args:
        source: `python_stdlib` (the source of this Python's standard library), `files`, or a public text by name; a
            path implies `files`.
        path: a file, a folder (all files below it, but for hidden ones) or a glob (`**` matches folders).
        held_out: fraction to hold out, in (0, 1).
        window: bytes of one training window; both parts must hold at least one.
        options: how compressed files and files of documents are read.

    Raises:
        DataError: when nothing is found, or something cannot be read, is empty or is too short.
    """
    name = path or ("the Python standard library" if source == "python_stdlib" else source)
    parts, borders_of_sides, note = _found(source, path, held_out, options)
    looks_wrong = _looks_wrong(parts)
    whole: ByteSequence = bytes_of_files([part.file for part in parts], "data.path")
    borders = list(accumulate(whole.files.sizes, initial=0))
    size = borders[-1]
    if not size:
        raise DataError(f"data.path: {name} is empty; name a corpus of at least {2 * window} bytes.")
    if size <= MEMORY_LIMIT:
        whole = np.asarray(whole)
    fingerprint = _fingerprint([part.label for part in parts], borders, whole)
    train, held = _sides(parts, borders, whole, held_out, borders_of_sides)
    for part, what in ((train, "training"), (held, "held-out")):
        if len(part) < window:
            raise DataError(
                f"data.path: {name} has {size} bytes, of which {len(part)} fall to the {what} part, but a window needs "
                f"{window}; use a longer corpus, a shorter model.seq_len or another data.held_out."
            )
    files = len({part.label.partition("#")[0] for part in parts})
    files_text = "1 file" if files == 1 else f"{files} files"
    description = f"{name}: {files_text}, {len(train):,} bytes for training, {len(held):,} held out{note}"
    if fault := entropy_fault(_sample(whole)):
        looks_wrong.append(f"data.path: {name} {fault}")
    return Corpus(train, held, fingerprint, description, tuple(looks_wrong))


class _Found(NamedTuple):
    """The plain files of a corpus, the ends of its sides where they are fixed, and what else to say of it."""

    parts: list[Part]
    borders: tuple[int, int] | None
    note: str


def _found(source: str, path: str, held_out: float, options: TextOptions) -> _Found:
    if not path and source == "python_stdlib":
        return _Found([Part(label, file) for label, file in standard_library()], None, "")
    if not path:
        text, file = TEXTS[source], downloaded(source, cache_folder(options.cache, os.environ))
        return _Found([Part(source, file)], text.borders, f"; {text.split}")
    found, left_out = _files(str(local_path(path, "data.path")))
    kinds = [format_of(file.name, options.text_field) for _, file in found]
    if not all(kind.is_plain for kind in kinds):
        require_apart(path, cache_folder(options.cache, os.environ), "data.cache")
    parts: list[Part] = []
    for (label, file), kind in zip(found, kinds):
        parts += [Part(label, file)] if kind.is_plain else unpacked(label, file, kind, held_out, options)
    return _Found(parts, None, f" (left out: {left_out} hidden, linked or repeated)" if left_out else "")


def _sides(
    parts: Sequence[Part],
    borders: Sequence[int],
    whole: ByteSequence,
    held_out: float,
    borders_of_sides: tuple[int, int] | None,
) -> tuple[ByteSequence, ByteSequence]:
    """The training and the held-out bytes."""
    size = borders[-1]
    if len(parts) == 1 and not parts[0].side:
        cut, end = borders_of_sides or (size - max(round(size * held_out), 0), size)
        return whole[:cut], whole[cut:end]
    undecided = [part.label for part in parts if not part.side]
    is_mixed = len(undecided) < len(parts)
    held_labels = _held_out_labels(undecided, held_out, may_be_empty=is_mixed) if undecided else set()
    sides: tuple[list[ByteSequence], list[ByteSequence]] = [], []
    for part, (start, end) in zip(parts, pairwise(borders)):
        sides[part.side == HELD_OUT or part.label in held_labels].append(whole[start:end])
    none = whole[:0]
    if isinstance(whole, np.ndarray):
        return np.concatenate([none, *sides[0]]), np.concatenate([none, *sides[1]])
    return joined([none, *sides[0]]), joined([none, *sides[1]])


def _looks_wrong(parts: Sequence[Part]) -> list[str]:
    """What the beginnings of files betray, a sentence each.

    Raises:
        DataError: for a corpus of nothing but Git's pointers to files that were not fetched.
    """
    beginnings = {part.label: _beginning(part.file) for part in parts}
    pointers = [label for label, beginning in beginnings.items() if is_pointer(beginning)]
    if pointers and len(pointers) == len(parts):
        raise DataError(
            f"data.path: {parts[0].file} is a Git LFS pointer and not the file itself; run `git lfs pull` beside it."
        )
    found = []
    strange = [(label, kind) for label, beginning in beginnings.items() if (kind := what_it_looks_like(beginning))]
    if strange:
        (label, kind), *others = strange
        more = f" (and {len(others)} more files like it)" if others else ""
        found.append(
            f"data.path: {label.partition('#')[0]} looks like {kind} inside{more}; a model would learn noise: unpack "
            "or convert it, or let its name end as its format does (.gz, .bz2, .xz, .zst, .zip, .parquet)"
        )
    if pointers:
        found.append(
            f"data.path: {len(pointers)} files are Git LFS pointers; run `git lfs pull` to fetch what they stand for"
        )
    return found


def _sample(whole: ByteSequence) -> np.ndarray:
    """Bytes of four places, uint8 [N]."""
    starts = np.linspace(0, max(0, len(whole) - SAMPLE), 4).astype(int)
    return np.concatenate([np.asarray(whole[start : start + SAMPLE]) for start in np.unique(starts)])


def _beginning(file: Path) -> bytes:
    try:
        with open(file, "rb") as handle:
            return handle.read(512)
    except OSError:
        return b""  # The next one to read it says so.


def _files(path: str) -> tuple[list[tuple[str, Path]], int]:
    """(label, file) pairs, sorted by label, and how many files were left out.

    Labels are relative to the folder, so a moved corpus stays the same. Below a folder, hidden files and folders (those
    of version control among them) are left out, and so are further names of the same file: it would be on both sides.
    """
    root = Path(path)
    if root.is_file():
        return [(root.name, root)], 0
    left_out = 0
    if root.is_dir():
        labelled, left_out = _below(root)
    else:
        found = [Path(p) for p in matches(path) if os.path.isfile(p)]
        base = Path(os.path.commonpath([p.parent for p in found])) if found else root
        labelled = [(p.relative_to(base).as_posix(), p) for p in found]
    unique: dict[tuple[int, int], tuple[str, Path]] = {}
    for label, file in sorted(labelled):
        status = file.stat()
        unique.setdefault((status.st_dev, status.st_ino), (label, file))
    if not unique:
        problem = "is no file" if os.path.exists(root) else "does not exist and matches no file as a glob"
        if root.is_dir():
            problem = f"holds hidden and linked ones alone ({left_out})" if left_out else "holds no files"
        raise DataError(f"data.path: {path} {problem}; name a file, a folder or a glob.")
    return sorted(unique.values()), left_out + len(labelled) - len(unique)


def _below(root: Path) -> tuple[list[tuple[str, Path]], int]:
    """Files below a folder, and how many were left out: hidden files, and links to folders, which are not followed."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"data.path: {error.filename} cannot be read ({error.strerror}); mend its rights or leave it out."
        )

    found: list[tuple[str, Path]] = []
    left_out = 0
    for folder, folders, names in os.walk(root, onerror=refuse):
        left_out += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        is_hidden = any(part.startswith(".") for part in Path(folder).relative_to(root).parts)
        for name in names:
            file = Path(folder, name)
            if is_hidden or name.startswith("."):
                left_out += 1
            elif file.is_file():
                found.append((file.relative_to(root).as_posix(), file))
    return found, left_out


def require_apart(corpus: str, written: Path, setting: str) -> None:
    """Refuses a corpus that a run writes into, since the next time it would be another one.

    Args:
        corpus: the config's `data.path`.
        written: a folder that is written to.
        setting: what names it, for the message.

    Raises:
        DataError: if files in `written` would belong to the corpus.
    """
    if not corpus:
        return
    root, folder = (Path(path).resolve() for path in (local_path(corpus, "data.path"), written))
    is_inside = root.is_dir() and folder.is_relative_to(root)
    if is_inside and not any(part.startswith(".") for part in folder.relative_to(root).parts):
        raise DataError(
            f"{setting}: {written} lies in the corpus {corpus}, which would grow by what is written there; name a "
            "folder elsewhere or a hidden one."
        )


def standard_library() -> list[tuple[str, Path]]:
    """(label, file) pairs of the source of this Python's standard library, without its tests, sorted by label."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]  # Not entered: packages may be many.
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise DataError("data.source: this Python ships no standard-library source; set data.path to a corpus.")
    return sorted((p.relative_to(root).as_posix(), p) for p in files)


def _fingerprint(labels: Sequence[str], borders: Sequence[int], whole: ByteSequence) -> str:
    """One pass over all bytes, a chunk in memory at a time.

    There is no shorter way to it by sizes and times of change: whatever restores a file's time would be missed.
    """
    digest = hashlib.sha256()
    with ReadingProgress("reading the corpus", borders[-1]) as progress:
        for label, (start, end) in zip(labels, pairwise(borders)):
            digest.update(f"{label}\0{end - start}\0".encode(errors="surrogateescape"))
            for at in range(start, end, _CHUNK):
                until = min(at + _CHUNK, end)
                digest.update(np.asarray(whole[at:until]))
                progress.advance(until - at)
    return digest.hexdigest()


def _held_out_labels(labels: Sequence[str], fraction: float, *, may_be_empty: bool) -> set[str]:
    by_hash = sorted((_unit_hash(label), label) for label in labels)
    held = {label for value, label in by_hash if value < fraction}
    if may_be_empty:  # Files of documents are on both sides.
        return held
    # Few files may all fall on one side: then the file nearest to the border changes over.
    if not held:
        return {by_hash[0][1]}
    return held - {by_hash[-1][1]} if len(held) == len(labels) else held


def _unit_hash(label: str) -> float:
    digest = hashlib.sha256(label.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def load_run_corpus(config: Config) -> Corpus:
    """The corpus of a config, checked to hold at least one window on either side."""
    data, model = config.data, config.model
    options = TextOptions(data.text_field, data.separator, data.cache)
    return load_corpus(data.source, data.path, data.held_out, window=model.seq_len + model.chunk, options=options)
