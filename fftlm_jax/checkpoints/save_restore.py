"""Saves and restores the training state of a run: orbax behind one small interface, and a manifest written last.

A step directory without a complete manifest is a save that was cut short. A step that does not match its manifest is
damaged. Neither is ever restored, and neither is deleted: those newer than the newest good step are moved to
`quarantine/`, so that saving the same step again is not refused, and the good step takes their place. Old steps go only
once the newest is whole, and renamed before they are deleted, so that no death on the way leaves half a step by its
name.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as retention

from fftlm_jax.checkpoints.saved_step import (
    DOOMED,
    MANIFEST,
    first_line,
    is_step_name,
    newest_whole,
    read_host,
    read_metric,
    restore_arrays,
    step_numbers,
    stray_names,
    temporary_folders,
    write_manifest,
)
from fftlm_jax.model.parameters import by_name
from fftlm_jax.parallel import is_first_process, together
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import CheckpointError, NonFiniteError, SaveError


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    """A flag per array; on the device, so that flags are all that travels."""
    return jnp.stack([jnp.isfinite(array).all() for array in arrays])


def nonfinite_arrays(tree: Any) -> list[str]:
    """Names of the arrays with a value that is not finite."""
    named = {
        name: array for name, array in by_name(tree, "/").items() if jnp.issubdtype(jnp.result_type(array), jnp.inexact)
    }
    if not named:
        return []
    finite = np.asarray(_all_finite(list(named.values())))
    return [name for name, is_finite in zip(named, finite, strict=True) if not is_finite]


class Restored(NamedTuple):
    """A restored checkpoint: arrays in the structure asked for, the host's JSON state, and the step."""

    arrays: Any
    host: dict[str, Any]
    step: int


class Checkpoints:
    """The `checkpoints/` folder of a run: the last `keep_last` steps and the best `keep_best` by bpb.

    At least two are kept, so that there is one to fall back to. `notes` collects sentences about what lay there and is
    no whole step.
    """

    def __init__(self, directory: Path, keep_last: int = 2, keep_best: int = 1) -> None:
        if keep_last < 2:
            raise ValueError(f"keep_last is {keep_last}, but a save may be cut short: keep at least 2")
        self.notes: list[str] = []
        self.directory = directory.resolve()
        self.quarantine = self.directory.parent / "quarantine"
        self._keep_last, self._keep_best = keep_last, keep_best
        self._options = ocp.CheckpointManagerOptions(
            # Orbax would delete old steps before the newest has its manifest: it keeps all, `_delete_old` deletes.
            preservation_policy=retention.LatestN(),
            # Without a best_fn orbax keeps metrics in memory only, and a resumed run would forget its best step.
            best_fn=_bpb if keep_best else None,
            best_mode="min",
            enable_async_checkpointing=False,
        )
        self._manager: ocp.CheckpointManager | None = None

    def save(self, step: int, arrays: Any, host: dict[str, Any], bpb: float | None = None) -> None:
        """Saves and commits one step; returns once it is complete on disk. Several processes must call it together.

        Args:
            step: updates done.
            arrays: pytree of arrays.
            host: JSON-ready state of the host.
            bpb: held-out bits per byte, where this step was evaluated; ranks it among the best.

        Raises:
            SaveError: if the step could not be written. NonFiniteError: if an array is not fit to be kept.
        """
        if bad := nonfinite_arrays(arrays):
            raise NonFiniteError(
                f"step {step} was not saved: {', '.join(bad[:5])}{' and more' * (len(bad) > 5)} hold NaN or infinite "
                "values. Lower lr.base (with --config.resume.allow=lr.base) and run the same command: it resumes from "
                "the last checkpoint."
            )
        try:
            if self._manager is None:
                with together(OSError, SaveError):
                    if is_first_process():
                        self.directory.mkdir(parents=True, exist_ok=True)
                        self._delete_temporary()
                        self._make_way()
                self._manager = ocp.CheckpointManager(self.directory, options=self._options)
            faults.point("before_arrays", step)
            items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(host))
            metrics = None if bpb is None else {"bpb": bpb}
            with together(OSError, ValueError):
                saved = self._manager.save(step, args=items, metrics=metrics, force=True)
            faults.point("after_arrays", step)
            with together(OSError, SaveError):
                if saved and is_first_process():
                    faults.point("before_manifest", step)
                    write_manifest(self.directory / str(step))
                    faults.point("after_manifest", step)
        except (OSError, ValueError, SaveError) as error:
            self._forget_unfinished(step)
            raise SaveError(f"{self.directory}: step {step} could not be saved ({first_line(error)}).") from error
        if not saved:
            raise SaveError(f"{self.directory}: orbax refused to save step {step}; is a newer step in the folder?")
        if is_first_process():
            self._delete_old()

    def _delete_old(self) -> None:
        """Deletes all steps but the last and the best; those that cannot be deleted now stay for the next save."""
        steps = step_numbers(self.directory)
        scores = {step: read_metric(self.directory / str(step)) for step in steps}
        ranked = sorted((bpb, -step) for step, bpb in scores.items() if bpb is not None)
        best = {-negative for _, negative in ranked[: self._keep_best]}
        for step in sorted(set(steps[: -self._keep_last]) - best):
            doomed = self.directory / f"{step}{DOOMED}"
            with contextlib.suppress(OSError):
                (self.directory / str(step)).rename(doomed)
                faults.point("during_deletion", step)
                shutil.rmtree(doomed)

    def _delete_temporary(self) -> None:
        """Deletes what saves and deletions left that were cut short, in this process or an earlier one."""
        for folder in temporary_folders(self.directory):
            shutil.rmtree(folder, ignore_errors=True)

    def _make_way(self) -> None:
        """Sets aside empty folders and files by the name of a step: orbax would refuse to save that step."""
        names = [int(name) for name in stray_names(self.directory) if is_step_name(name)]
        self._set_aside(dict.fromkeys(names, "it is no step"))

    def _forget_unfinished(self, step: int) -> None:
        """Removes what a save that failed has left, lest it fill the disk for good; the next one begins afresh."""
        if self._manager is not None:
            with contextlib.suppress(OSError, ValueError):
                self._manager.close()
            self._manager = None
        if not is_first_process():
            return
        self._delete_temporary()
        if not (self.directory / str(step) / MANIFEST).exists():
            shutil.rmtree(self.directory / str(step), ignore_errors=True)

    def set_aside_from(self, first: int, why: str) -> None:
        """Moves all steps from `first` on to `quarantine/`."""
        self._set_aside({step: why for step in step_numbers(self.directory) if step >= first})

    def restore(self, abstract_arrays: Any) -> Restored | None:
        """Restores the newest good step into the given structure, or None where no step was ever completed.

        Raises:
            CheckpointError: if there are steps but none is usable, or the structure differs.
        """
        step, faulty = newest_whole(self.directory)
        self.notes += [f"checkpoints/{name} is no step and was ignored" for name in stray_names(self.directory)]
        if step is not None:
            directory = self.directory / str(step)
            restored = Restored(restore_arrays(directory, abstract_arrays), read_host(directory), step)
            self._set_aside(faulty)
            return restored
        if len(faulty) == 1 and not (self.directory / str(next(iter(faulty))) / MANIFEST).exists():
            # Two are kept from the second save on, so a single one without a manifest is a first save cut short.
            self._set_aside(faulty)
        elif faulty:
            why = "; ".join(f"step {step}: {fault}" for step, fault in faulty.items())
            raise CheckpointError(f"{self.directory}: no step is usable ({why}). Nothing was deleted.")
        return None

    def close(self) -> None:
        """Releases orbax's resources."""
        if self._manager is not None:
            self._manager.close()

    def _set_aside(self, why: dict[int, str]) -> None:
        if not is_first_process():
            return  # All find the same faults; one moves them.
        for step, fault in why.items():
            try:
                self.quarantine.mkdir(exist_ok=True)
                target, n = self.quarantine / str(step), 0
                while os.path.lexists(target):
                    n += 1
                    target = self.quarantine / f"{step}.{n}"
                (self.directory / str(step)).rename(target)
            except OSError as error:
                raise SaveError(f"{self.directory / str(step)} cannot be moved away ({error.strerror}).") from None
            self.notes.append(f"step {step} was moved to quarantine/: {fault}")


def _bpb(metrics: dict[str, float]) -> float:
    return metrics["bpb"]
