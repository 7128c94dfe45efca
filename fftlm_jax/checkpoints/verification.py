"""Checks the checkpoints of a run directory against their manifests, and prints a hash of the newest state.

    fftlm verify runs/quickstart

The hash covers the arrays by path and the controller, not the files' bytes: two runs in the same state have the same
hash wherever and whenever they were saved. What lies there besides is named: folders of saves under way or cut short,
and steps that were moved to `quarantine/`. Exit code 0 if every step is whole, 4 if one is not, 1 if there is none.
Takes no accelerator and no lock, so that a run can be looked at while it trains.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fftlm_jax.checkpoints.saved_step import (
    manifest_fault,
    read_arrays,
    read_host,
    step_numbers,
    stray_names,
    temporary_folders,
)
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.process import CommandParser, run_command
from fftlm_jax.runtime.untrusted import require_contained


def state_hash(arrays: Any, controller: dict[str, Any]) -> str:
    """SHA-256 of a training state: path, dtype, shape and bytes of every array, and the controller's JSON."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    ):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\0".encode())
        digest.update(array.tobytes())
    digest.update(json.dumps(controller, sort_keys=True).encode())
    return digest.hexdigest()


def verify(root: str | Path) -> int:
    """Prints one line per step and the newest whole step's state hash; returns the exit code.

    No config is asked what the arrays must be, so they may be as large as their files can hold: what is declared
    larger than 64 times the files, plus 64 MiB, is refused.

    Raises:
        UsageError: if there are no steps.
        CheckpointError: if a link leads out of the folder, or the newest step that matches its manifest misleads.
    """
    root = Path(root).resolve()
    checkpoints = root / "checkpoints"
    require_contained(root)
    steps = step_numbers(checkpoints)
    if not steps:
        raise UsageError(f"{checkpoints} holds no checkpoints; name a run directory.")
    faults = {step: manifest_fault(checkpoints / str(step)) for step in steps}
    for step, fault in faults.items():
        print(f"step {step}: {fault or 'whole'}")
    for folder in temporary_folders(checkpoints):
        print(f"{folder.name}: temporary, of a save or deletion under way or cut short; the next save removes it")
    for name in stray_names(checkpoints):
        print(f"{name}: no step, ignored")
    quarantine = root / "quarantine"
    for folder in sorted(quarantine.iterdir()) if quarantine.is_dir() else ():
        print(f"quarantine/{folder.name}: {manifest_fault(folder) or 'whole, but set aside'}; delete it when you like")
    whole = [step for step, fault in faults.items() if fault is None]
    if whole:
        directory = checkpoints / str(whole[-1])
        digest = state_hash(read_arrays(directory), read_host(directory).get("controller", {}))
        print(f"state of step {whole[-1]}: {digest}")
    return 0 if len(whole) == len(steps) else 4


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    parser = CommandParser("fftlm verify", __doc__)
    parser.add_run()
    args = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_platform_name", "")  # What the environment asks for need not be there.
    return run_command(lambda: verify(args.workdir))
