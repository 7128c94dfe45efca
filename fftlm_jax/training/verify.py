"""Checks the checkpoints of a run directory against their manifests, and prints a hash of the newest state.

    python -m fftlm_jax.training.verify runs/quickstart

The hash covers the arrays by path and the controller, not the files' bytes: two runs in the same state have the same
hash wherever and whenever they were saved. Exit code 0 if every step is whole, 4 if
one is not, 1 if there is none.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from fftlm_jax.training.checkpoint import manifest_fault, read_arrays, read_host, step_numbers


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
    """Prints one line per step and the newest whole step's state hash; returns the exit code."""
    checkpoints = Path(root).resolve() / "checkpoints"
    steps = step_numbers(checkpoints)
    if not steps:
        print(f"UsageError: {checkpoints} holds no checkpoints; name a run directory.", file=sys.stderr)
        return 1
    faults = {step: manifest_fault(checkpoints / str(step)) for step in steps}
    for step, fault in faults.items():
        print(f"step {step}: {fault or 'whole'}")
    whole = [step for step, fault in faults.items() if fault is None]
    if whole:
        directory = checkpoints / str(whole[-1])
        digest = state_hash(read_arrays(directory), read_host(directory)["controller"])
        print(f"state of step {whole[-1]}: {digest}")
    return 0 if len(whole) == len(steps) else 4


def main(arguments: list[str]) -> int:
    """Command line."""
    logging.set_verbosity(logging.ERROR)
    if len(arguments) != 2:
        print("usage: python -m fftlm_jax.training.verify RUN_DIR", file=sys.stderr)
        return 1
    return verify(arguments[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
