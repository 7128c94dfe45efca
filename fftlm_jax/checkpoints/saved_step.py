"""One saved step on disk: its SHA-256 manifest, its arrays, the host's state and its score.

A manifest protects against accidents. Whoever can write the step can write its manifest too.

Files may come from elsewhere: what they declare is compared with what is wanted before anything is allocated.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fftlm_jax.checkpoints.run_directory import sync_folder, write_json
from fftlm_jax.model.parameters import by_name, misfits
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.runtime.untrusted import (
    file_sha256,
    is_inner_name,
    parse_json,
    read_bounded,
    read_json,
    require_plausible,
    shown,
    step_files,
)

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
            if file.stat().st_size != size or file_sha256(file) != digest:
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


def newest_whole(checkpoints: Path) -> tuple[int | None, dict[int, str]]:
    """The newest step that matches its manifest, or None, and what is wrong with those after it, newest first."""
    faults: dict[int, str] = {}
    for step in reversed(step_numbers(checkpoints)):
        fault = manifest_fault(checkpoints / str(step))
        if fault is None:
            return step, faults
        faults[step] = fault
    return None, faults


DOOMED = ".deleting"  # In the name of an old step that is being deleted.
_TEMPORARY = (".orbax-checkpoint-tmp", DOOMED)  # The first: of a folder that orbax has not finished.


def temporary_folders(directory: Path) -> list[Path]:
    """Folders of saves and deletions under way, or of those that were cut short."""
    entries = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in entries if any(mark in path.name for mark in _TEMPORARY))


def stray_names(directory: Path) -> list[str]:
    """What lies in a checkpoint folder and is neither a step nor temporary, such as an empty folder."""
    steps, passing = step_numbers(directory), temporary_folders(directory)
    known = {str(step) for step in steps} | {path.name for path in passing}
    return sorted(path.name for path in directory.iterdir() if path.name not in known) if directory.is_dir() else []


def restore_arrays(directory: Path, abstract_arrays: Any) -> Any:
    """The arrays of a step in the given structure, laid out as it says.

    Raises:
        CheckpointError: naming every array that is missing, unexpected, or of another shape or dtype (which orbax
            itself would cast silently), or if they cannot be read.
    """
    _require_fit(directory, declared_arrays(directory), abstract_arrays)
    try:
        return ocp.StandardCheckpointer().restore(directory / "arrays", abstract_arrays)
    except Exception as error:  # Files made to mislead may lead the reader into any error.
        raise CheckpointError(f"{directory}: its arrays cannot be read ({first_line(error)}).") from None


def read_host(directory: Path) -> dict[str, Any]:
    """The host's state of a step.

    Raises:
        CheckpointError: if it cannot be read.
    """
    file = directory / "host" / "metadata"
    try:
        host = read_json(file, nan=True)
        if not isinstance(host, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}).") from None
    return host


def declared_arrays(directory: Path) -> Any:
    """Metadata of the arrays of a step, in the structure the file declares; nothing is allocated.

    Raises:
        CheckpointError: if it cannot be read, or declares more than the files can hold.
    """
    try:
        tree = ocp.PyTreeCheckpointer().metadata(directory / "arrays").item_metadata.tree
        arrays = by_name(tree, "/")
        if not isinstance(tree, dict) or not all(np.dtype(a.dtype) and tuple(a.shape) >= () for a in arrays.values()):
            raise ValueError("it holds something else than named arrays")
    except Exception as error:  # Files made to mislead may lead the reader into any error.
        raise CheckpointError(f"{directory}: its arrays cannot be read ({first_line(error)}).") from None
    require_plausible(directory, arrays)
    return tree


def read_arrays(directory: Path, wanted: dict[str, Any] | None = None) -> Any:
    """Arrays of a step as a nested dict or list of NumPy arrays.

    Args:
        directory: the step.
        wanted: abstract arrays, by the name of the part of the state they belong to: that part alone is read, and
            refused unless it is as wanted. None reads all, in the structure the file declares.

    Raises:
        CheckpointError: naming arrays that are not as wanted, or if they cannot be read.
    """
    tree = declared_arrays(directory)
    if wanted is not None:
        _require_fit(directory, {name: tree[name] for name in wanted if name in tree}, wanted)
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree if wanted is None else wanted)
    part = {"item": wanted, "partial_restore": True} if wanted is not None else {}
    try:
        return ocp.PyTreeCheckpointer().restore(
            directory / "arrays", args=ocp.args.PyTreeRestore(restore_args=restore_args, **part)
        )
    except Exception as error:  # As above.
        raise CheckpointError(f"{directory}: its arrays cannot be read ({first_line(error)}).") from None


def read_metric(directory: Path) -> float | None:
    """The held-out bpb that a step was saved with, if it was evaluated; None too where that cannot be read."""
    try:
        bpb = read_json(directory / "metrics" / "metrics")["bpb"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(bpb) if isinstance(bpb, float) or type(bpb) is int else None


def _require_fit(directory: Path, declared: Any, wanted: Any) -> None:
    faults = misfits(by_name(declared, "/"), by_name(wanted, "/"))
    if faults:
        raise CheckpointError(f"{directory}: does not fit this model: {'; '.join(faults)}.")


def first_line(error: Exception) -> str:
    """What an error says first, without what tensorstore attaches in brackets; its name where it says nothing."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return _ATTACHED.split(line)[0]


_ATTACHED = re.compile(r" \[\w+='")
