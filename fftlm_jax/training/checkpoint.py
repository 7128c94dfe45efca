"""Checkpoints through orbax behind one small interface, each with a SHA-256 manifest written last.

A step directory without a complete manifest is a save that was cut short. A step that does not match its manifest is
damaged. Neither is ever restored, and neither is deleted: those newer than the newest good step are moved to
`quarantine/`, so that saving the same step again is not refused, and the good step takes their place.
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as retention

from fftlm_jax.array_names import by_name, misfits
from fftlm_jax.errors import CheckpointError, SaveError
from fftlm_jax.training.run_directory import write_json

MANIFEST = "manifest.json"
_TEMPORARY = ".orbax-checkpoint-tmp"  # In the name of a folder that orbax has not finished.


class Restored(NamedTuple):
    """A restored checkpoint: arrays in the structure asked for, the host's JSON state, and the step."""

    arrays: Any
    host: dict[str, Any]
    step: int


class Checkpoints:
    """The `checkpoints/` folder of a run: the last `keep_last` steps and the best `keep_best` by bpb.

    At least two are kept, since orbax deletes old steps before the newest has its manifest. `notes` collects sentences
    about steps that had to be set aside.
    """

    def __init__(self, directory: Path, keep_last: int = 2, keep_best: int = 1) -> None:
        if keep_last < 2:
            raise ValueError(f"keep_last is {keep_last}, but a save may be cut short: keep at least 2")
        self.notes: list[str] = []
        self.directory = directory.resolve()
        self.quarantine = self.directory.parent / "quarantine"
        policies = [retention.LatestN(keep_last)]
        if keep_best:
            policies.append(
                retention.BestN(
                    get_metric_fn=_bpb,
                    reverse=True,
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=retention.AnyPreservationPolicy(policies),
            # Without a best_fn orbax keeps metrics in memory only, and a resumed run would forget its best step.
            best_fn=_bpb if keep_best else None,
            best_mode="min",
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        self._manager: ocp.CheckpointManager | None = None

    def save(self, step: int, arrays: Any, host: dict[str, Any], bpb: float | None = None) -> None:
        """Saves and commits one step; returns once it is complete on disk.

        Args:
            step: updates done.
            arrays: pytree of arrays.
            host: JSON-ready state of the host.
            bpb: held-out bits per byte, where this step was evaluated; ranks it among the best.

        Raises:
            SaveError: if the step could not be written.
        """
        try:
            if self._manager is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._manager = ocp.CheckpointManager(self.directory, options=self._options)
            items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host))
            metrics = None if bpb is None else {"bpb": bpb}
            saved = self._manager.save(step, args=items, metrics=metrics, force=True)
            if saved:
                write_manifest(self.directory / str(step))
        except (OSError, ValueError, SaveError) as error:
            self._forget_unfinished(step)
            raise SaveError(f"{self.directory}: step {step} could not be saved ({_first_line(error)}).") from error
        if not saved:
            raise SaveError(f"{self.directory}: orbax refused to save step {step}; is a newer step in the folder?")

    def _forget_unfinished(self, step: int) -> None:
        """Removes what a save that failed has left, lest it fill the disk for good; the next one begins afresh."""
        if self._manager is not None:
            with contextlib.suppress(OSError, ValueError):
                self._manager.close()
            self._manager = None
        left = [p for p in self.directory.glob("*") if _TEMPORARY in p.name] if self.directory.is_dir() else []
        if not (self.directory / str(step) / MANIFEST).exists():
            left.append(self.directory / str(step))
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)

    def set_aside_from(self, first: int, why: str) -> None:
        """Moves all steps from `first` on to `quarantine/`."""
        self._set_aside({step: why for step in step_numbers(self.directory) if step >= first})

    def restore(self, abstract_arrays: Any) -> Restored | None:
        """Restores the newest good step into the given structure, or None where no step was ever completed.

        Raises:
            CheckpointError: if there are steps but none is usable, or the structure differs.
        """
        steps = step_numbers(self.directory)
        faults: dict[int, str] = {}
        for step in reversed(steps):
            fault = manifest_fault(self.directory / str(step))
            if fault is None:
                restored = self._restore_step(step, abstract_arrays)
                self._set_aside(faults)
                return restored
            faults[step] = fault
        if len(steps) == 1 and not (self.directory / str(steps[0]) / MANIFEST).exists():
            # Two are kept from the second save on, so a single one without a manifest is a first save cut short.
            self._set_aside(faults)
        elif faults:
            why = "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
            raise CheckpointError(f"{self.directory}: no step is usable ({why}). Nothing was deleted.")
        return None

    def close(self) -> None:
        """Releases orbax's resources."""
        if self._manager is not None:
            self._manager.close()

    def _restore_step(self, step: int, abstract_arrays: Any) -> Restored:
        directory = self.directory / str(step)
        check_shapes(directory, abstract_arrays)
        arrays = ocp.StandardCheckpointer().restore(directory / "arrays", abstract_arrays)
        return Restored(arrays, read_host(directory), step)

    def _set_aside(self, faults: dict[int, str]) -> None:
        for step, fault in faults.items():
            self.quarantine.mkdir(exist_ok=True)
            target = self.quarantine / str(step)
            for n in range(1, 1000):
                if not target.exists():
                    break
                target = self.quarantine / f"{step}.{n}"
            shutil.move(self.directory / str(step), target)
            self.notes.append(f"step {step} was moved to quarantine/: {fault}")


def step_numbers(directory: Path) -> list[int]:
    """Steps in a checkpoint folder, increasing; stray files and empty folders are no steps."""
    if not directory.is_dir():
        return []
    folders = [p for p in directory.iterdir() if is_step_name(p.name) and p.is_dir() and any(p.iterdir())]
    return sorted(int(folder.name) for folder in folders)


def is_step_name(name: str) -> bool:
    """Whether a folder of this name can be a step: ASCII digits alone (Python counts others as digits too)."""
    return name.isascii() and name.isdigit()


def write_manifest(directory: Path) -> None:
    """Writes the SHA-256 and size of every file of a step; the rename makes the manifest complete or absent."""
    files = {
        p.relative_to(directory).as_posix(): {"bytes": p.stat().st_size, "sha256": _sha256(p)}
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }
    write_json(directory / MANIFEST, {"files": files})


def manifest_fault(directory: Path) -> str | None:
    """What is wrong with a step's files, in words, or None if all match the manifest."""
    try:
        text = (directory / MANIFEST).read_text()
        if not text.endswith("}\n"):
            raise ValueError("cut short")
        files = json.loads(text)["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return "it has no manifest, so its save was cut short"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    for name, (size, digest) in expected.items():
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or _sha256(file) != digest:
            return f"{name} does not match its manifest"
    return None


def read_host(directory: Path) -> dict[str, Any]:
    """The host's state of a step."""
    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(directory / "host")


def read_arrays(directory: Path) -> Any:
    """The arrays of a step as a nested dict or list of NumPy arrays, in the structure the file declares."""
    checkpointer = ocp.PyTreeCheckpointer()
    metadata = checkpointer.metadata(directory / "arrays").item_metadata.tree
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
    return checkpointer.restore(directory / "arrays", args=ocp.args.PyTreeRestore(restore_args=restore_args))


def read_metric(directory: Path) -> float | None:
    """The held-out bpb that a step was saved with, if it was evaluated."""
    file = directory / "metrics" / "metrics"
    return float(json.loads(file.read_text())["bpb"]) if file.is_file() else None


def check_shapes(directory: Path, abstract_arrays: Any) -> None:
    """Compares a step's arrays with the expected structure; orbax itself casts a wrong dtype silently.

    Raises:
        CheckpointError: naming every array that is missing, unexpected, or of another shape or dtype.
    """
    metadata = ocp.PyTreeCheckpointer().metadata(directory / "arrays").item_metadata.tree
    faults = misfits(by_name(metadata, "/"), by_name(abstract_arrays, "/"))
    if faults:
        raise CheckpointError(f"{directory}: does not fit this model: {'; '.join(faults)}.")


def _bpb(metrics: dict[str, float]) -> float:
    return metrics["bpb"]


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
