"""Opens a saved run for reading: its config, and the weights of one of its steps."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.config import Config, read_config
from fftlm_jax.errors import CheckpointError, ConfigError, UsageError
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params
from fftlm_jax.spectral import LowPass
from fftlm_jax.training.checkpoint import manifest_fault, read_arrays, read_host, read_metric, step_numbers
from fftlm_jax.training.run_directory import RunDirectory
from fftlm_jax.training.setup import evaluation_low_pass


def load(workdir: str | Path, which: str) -> tuple[Config, int, Params, LowPass]:
    """Config, step number, weights and band limit of a saved step.

    Args:
        workdir: run directory.
        which: `best` (lowest held-out bpb; the newest where none was evaluated), `last`, or a step number.

    Raises:
        RunError: if there is no such run or step, or it is damaged.
    """
    directory = RunDirectory(workdir)
    if not directory.has_config:
        raise UsageError(f"--workdir: {directory.root} holds no run; name a run directory.")
    try:
        config = read_config(directory.read_config())
    except ConfigError as error:
        raise CheckpointError(f"{directory.config}: {error}") from None
    step = choose_step(directory.checkpoints, which)
    folder = directory.checkpoints / str(step)
    fault = manifest_fault(folder)
    if fault:
        raise CheckpointError(f"{folder}: {fault}; choose another --step.")
    params = read_arrays(folder)["params"]
    expected = build(config.model)[1]
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, expected):
        raise CheckpointError(f"{folder}: its arrays do not fit the model of {directory.config}.")
    cutoff = int(read_host(folder)["controller"]["cutoff"])
    return config, step, jax.tree.map(jnp.asarray, params), evaluation_low_pass(config, cutoff)


def choose_step(checkpoints: Path, which: str) -> int:
    """The step that `best`, `last` or a number means.

    Raises:
        UsageError: if there is none; lists those there are.
    """
    steps = step_numbers(checkpoints)
    if not steps:
        raise UsageError(f"--workdir: {checkpoints} holds no checkpoints yet.")
    if which == "last":
        return steps[-1]
    if which == "best":
        scored = [(bpb, step) for step in steps if (bpb := read_metric(checkpoints / str(step))) is not None]
        return min(scored)[1] if scored else steps[-1]
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise UsageError(f"--step: {which!r} is not best, last or one of the saved steps {steps}.")
