"""Finds the files of a corpus, splits off the held-out part, and fingerprints it.

Nothing is parsed: binary files and invalid UTF-8 are legal. Files are taken in sorted order, one behind the other. A
small corpus is read into memory; of a larger one only what is asked for is read, when it is.
"""

import glob
import hashlib
import os
import sysconfig
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fftlm_jax.config.schema import Config
from fftlm_jax.data.byte_sequence import ByteSequence, bytes_of_files, joined
from fftlm_jax.runtime.errors import DataError
from fftlm_jax.runtime.paths import local_path

# Up to so many bytes a corpus is kept in memory, where nothing can happen to it and the smallest files cost nothing.
MEMORY_LIMIT = 128 << 20
_CHUNK = 1 << 20  # Bytes that are hashed at a time.

# Parts of the standard library that are not source one would want to model: tests, caches, third-party packages.
_STDLIB_SKIPPED = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}


class Corpus(NamedTuple):
    """Training and held-out bytes, a SHA-256 over names, sizes and contents, and a line about it."""

    train: ByteSequence
    held_out: ByteSequence
    fingerprint: str
    description: str


def load_corpus(source: str, path: str, held_out: float, *, window: int) -> Corpus:
    """Loads and splits a corpus.

    Many files are split by a hash of their name, so that a file stays on its side when others come or go; of a single
    file the last part is held out.

    Args:
        source: `python_stdlib` (the source of this Python's standard library) or `files`; a path implies the latter.
        path: a file, a folder (all files below it) or a glob (`**` matches folders).
        held_out: fraction to hold out, in (0, 1).
        window: bytes of one training window; both parts must hold at least one.

    Raises:
        DataError: when nothing is found, or something cannot be read, is empty or is too short.
    """
    labels, files = zip(*(_files(str(local_path(path, "data.path"))) if path else _standard_library()))
    name = path or "the Python standard library"
    whole: ByteSequence = bytes_of_files(files, "data.path")
    borders = list(accumulate(whole.files.sizes, initial=0))
    size = borders[-1]
    if not size:
        raise DataError(f"data.path: {name} is empty; name a corpus of at least {2 * window} bytes.")
    if size <= MEMORY_LIMIT:
        whole = np.asarray(whole)
    fingerprint = _fingerprint(labels, borders, whole)
    if len(files) == 1:
        cut = size - max(round(size * held_out), 0)
        train, held = whole[:cut], whole[cut:]
    else:
        held_labels = _held_out_labels(labels, held_out)
        sides: tuple[list[ByteSequence], list[ByteSequence]] = [], []
        for label, (start, end) in zip(labels, pairwise(borders)):
            sides[label in held_labels].append(whole[start:end])
        train, held = (np.concatenate(side) if isinstance(whole, np.ndarray) else joined(side) for side in sides)
    for part, what in ((train, "training"), (held, "held-out")):
        if len(part) < window:
            raise DataError(
                f"data.path: {name} has {size} bytes, of which {len(part)} fall to the {what} part, but a window needs "
                f"{window}; use a longer corpus, a shorter model.seq_len or another data.held_out."
            )
    files_text = "1 file" if len(files) == 1 else f"{len(files)} files"
    description = f"{name}: {files_text}, {len(train):,} bytes for training, {len(held):,} held out"
    return Corpus(train, held, fingerprint, description)


def _files(path: str) -> list[tuple[str, Path]]:
    """(label, file) pairs, sorted by label; labels are relative to the folder, so a moved corpus stays the same."""
    root = Path(path)
    if root.is_file():
        return [(root.name, root)]
    if root.is_dir():
        found = [p for p in root.rglob("*") if p.is_file()]
        labelled = [(p.relative_to(root).as_posix(), p) for p in found]
    else:
        found = [Path(p) for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
        base = Path(os.path.commonpath([p.parent for p in found])) if found else root
        labelled = [(p.relative_to(base).as_posix(), p) for p in found]
    if not found:
        problem = "holds no files" if root.is_dir() else "does not exist and matches no file as a glob"
        raise DataError(f"data.path: {path} {problem}; name a file, a folder or a glob.")
    return sorted(labelled)


def _standard_library() -> list[tuple[str, Path]]:
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
    # Shown on terminals, where it takes a while.
    bar_options = {"unit": "B", "unit_scale": True, "leave": False, "delay": 3, "disable": None}
    with tqdm(total=borders[-1], desc="reading the corpus", **bar_options) as bar:
        for label, (start, end) in zip(labels, pairwise(borders)):
            digest.update(f"{label}\0{end - start}\0".encode(errors="surrogateescape"))
            for at in range(start, end, _CHUNK):
                until = min(at + _CHUNK, end)
                digest.update(np.asarray(whole[at:until]))
                bar.update(until - at)
    return digest.hexdigest()


def _held_out_labels(labels: Sequence[str], fraction: float) -> set[str]:
    by_hash = sorted((_unit_hash(label), label) for label in labels)
    held = {label for value, label in by_hash if value < fraction}
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
    return load_corpus(data.source, data.path, data.held_out, window=model.seq_len + model.chunk)
