"""Steps on disk, and the SHA-256 manifest that tells a whole one from one that was cut short or damaged.

A manifest protects against accidents. Whoever can write the step can write its manifest too.
"""

import hashlib
import os
from pathlib import Path

from fftlm_jax.training.foreign import is_inner_name, step_files
from fftlm_jax.training.run_directory import sync_folder, write_json
from fftlm_jax.untrusted import parse_json, read_bounded, shown

MANIFEST = "manifest.json"


def step_numbers(directory: Path) -> list[int]:
    """Steps in a checkpoint folder, increasing; stray files and empty folders are no steps."""
    if not directory.is_dir():
        return []
    folders = [p for p in directory.iterdir() if is_step_name(p.name) and p.is_dir() and any(p.iterdir())]
    return sorted(int(folder.name) for folder in folders)


def is_step_name(name: str) -> bool:
    """Whether a folder of this name can be a step: ASCII digits alone (Python counts others as digits too)."""
    return name.isascii() and name.isdigit() and len(name) < 19


def write_manifest(directory: Path) -> None:
    """Brings every file of a step to disk, then writes the SHA-256 and size of each.

    The rename makes the manifest complete or absent, and it comes last: a power cut leaves none that lists bytes which
    were still on their way.
    """
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": _synced(path)}
    sync_folder(directory)
    sync_folder(directory.parent)
    write_json(directory / MANIFEST, {"files": files})


def manifest_fault(directory: Path) -> str | None:
    """What is wrong with a step's files, in words, or None if all match the manifest."""
    found, fault = step_files(directory)
    if fault:
        return fault
    try:
        text = read_bounded(directory / MANIFEST)
        if not text.endswith(b"}\n"):
            raise ValueError("cut short")
        files = parse_json(text)["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return "it has no manifest, so its save was cut short"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    for name, (size, digest) in expected.items():
        if not is_inner_name(name):
            return f"its manifest lists {shown(name)}, which is no file of it"
        if name not in found:
            return f"{shown(name)} is missing"
        file = directory / name
        try:
            if file.stat().st_size != size or _sha256(file) != digest:
                return f"{shown(name)} does not match its manifest"
        except OSError as error:
            return f"{shown(name)} cannot be read ({error.strerror})"
    # Beside it may lie what a desktop leaves behind, such as .DS_Store.
    unlisted = sorted(name for name in found - {MANIFEST, *expected} if not Path(name).name.startswith("."))
    return f"{shown(unlisted[0])} is not in its manifest" if unlisted else None


def _synced(file: Path) -> str:
    """Brings a file to disk and returns its SHA-256."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
