"""Reads one saved step: its arrays, the host's state, its score. Whatever is wrong with the files is one sentence.

Files may come from elsewhere: what they declare is compared with what is wanted before anything is allocated.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fftlm_jax.array_names import by_name, misfits
from fftlm_jax.errors import CheckpointError
from fftlm_jax.training.foreign import require_plausible
from fftlm_jax.untrusted import read_json


def restore_arrays(directory: Path, abstract_arrays: Any) -> Any:
    """The arrays of a step in the given structure, laid out as it says.

    Raises:
        CheckpointError: naming every array that is missing, unexpected, or of another shape or dtype (which orbax
            itself would cast silently), or if they cannot be read.
    """
    _require_fit(directory, declared_arrays(directory), abstract_arrays)
    try:
        return ocp.StandardCheckpointer().restore(directory / "arrays", abstract_arrays)
    except Exception as error:  # Whatever files that were made to mislead bring the reader to.
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
    except Exception as error:  # Whatever files that were made to mislead bring the reader to.
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
    """What an error says first; its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
