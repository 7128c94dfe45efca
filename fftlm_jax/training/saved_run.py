"""Opens a saved run for reading: its config, and the weights of one of its steps."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fftlm_jax
from fftlm_jax.config import Config, read_config
from fftlm_jax.config_rules_size import parameter_count, require_room
from fftlm_jax.cutoff import freq_bins
from fftlm_jax.errors import CheckpointError, ConfigError, UsageError
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params
from fftlm_jax.spectral import LowPass
from fftlm_jax.training.host_state import cutoff_of, text_of
from fftlm_jax.training.manifest import is_step_name, manifest_fault, step_numbers
from fftlm_jax.training.run_directory import RunDirectory
from fftlm_jax.training.saved_step import declared_arrays, read_arrays, read_host, read_metric
from fftlm_jax.training.setup import evaluation_low_pass
from fftlm_jax.training.step import averaged_params


class SavedRun(NamedTuple):
    """A saved step: what it takes to run the model, and the fingerprint of the corpus it was trained on."""

    config: Config
    step: int
    params: Params
    low_pass: LowPass
    corpus: str


def load(workdir: str | Path, which: str, *, averaged: bool = False) -> SavedRun:
    """Opens a saved step.

    Args:
        workdir: run directory.
        which: `best` (lowest held-out bpb; the newest where none was evaluated), `last`, or a step number.
        averaged: take the weights' running average (`optim.ema_decay`) in place of the weights.

    Raises:
        RunError: if there is no such run or step, or it is damaged.
    """
    directory, config = open_config(workdir, "--workdir: ")
    step = choose_step(directory.checkpoints, which)
    folder = directory.checkpoints / str(step)
    fault = manifest_fault(folder)
    if fault:
        raise CheckpointError(f"{folder}: {fault}; choose another --step.")
    if averaged and not config.optim.ema_decay:
        raise UsageError(f"--ema: {directory.root} kept no average of its weights (optim.ema_decay was 0).")
    part = "ema" if averaged else "params"
    held = sum(math.prod(array.shape) for array in jax.tree.leaves(declared_arrays(folder).get(part)))
    require_room(str(directory.config), parameter_count(config.model), held)
    abstract = build(config.model)[1]
    wanted = {"count": jax.ShapeDtypeStruct((), np.int32), "ema": abstract} if averaged else abstract
    arrays = read_arrays(folder, {part: wanted})[part]
    params = _averaged(config, arrays) if averaged else arrays
    host = read_host(folder)
    low_pass = evaluation_low_pass(config, cutoff_of(host, freq_bins(config.model.seq_len), folder))
    return SavedRun(config, step, jax.tree.map(jnp.asarray, params), low_pass, text_of(host, "corpus", folder))


def open_config(workdir: str | Path, option: str = "") -> tuple[RunDirectory, Config]:
    """The folder of a run and its config, which needs no corpus.

    Args:
        workdir: run directory.
        option: how the command line names it; begins the sentence about a folder that holds no run.

    Raises:
        UsageError: if there is no run. CheckpointError: if its config cannot be used.
    """
    directory = RunDirectory(workdir)
    if not directory.has_config:
        raise UsageError(f"{option}{directory.root} holds no run; name a run directory.")
    try:
        return directory, read_config(directory.read_config(), with_data=False)
    except ConfigError as error:
        raise CheckpointError(
            f"{directory.config}: {error} It was written by fftlm_jax {directory.written_by()}; this is "
            f"{fftlm_jax.__version__}."
        ) from None


def _averaged(config: Config, ema: dict[str, Any]) -> Params:
    return averaged_params(config, optax.EmaState(count=ema["count"], ema=ema["ema"]))


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
    if is_step_name(which) and int(which) in steps:
        return int(which)
    raise UsageError(f"--step: {which!r} is not best, last or one of the saved steps {steps}.")
