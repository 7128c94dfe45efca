"""Opens a saved run for reading, and gives the weights that another run starts from (`init.checkpoint`)."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fftlm_jax
from fftlm_jax.checkpoints.contents import averaged_params, cutoff_of, text_of
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.saved_step import (
    declared_arrays,
    is_step_name,
    manifest_fault,
    newest_whole,
    read_arrays,
    read_host,
    read_metric,
    step_numbers,
)
from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.config.limits import parameter_count, require_room
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config, ModelConfig
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params, evaluation_low_pass
from fftlm_jax.model.parameters import by_name
from fftlm_jax.runtime.errors import CheckpointError, ConfigError, UsageError
from fftlm_jax.runtime.jax_settings import require_devices, require_supported_settings
from fftlm_jax.runtime.paths import local_path
from fftlm_jax.runtime.untrusted import read_json, require_contained, shown
from fftlm_jax.spectral import LowPass


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
    require_supported_settings()
    require_devices()
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
    return averaged_params(config.optim.ema_decay, optax.EmaState(count=ema["count"], ema=ema["ema"]))


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


# The part of `model` that decides which arrays there are; the rest stays the new run's own.
ARCHITECTURE = (
    *("d_model", "n_layers", "mixer", "conv_heads", "kernel_len", "kernel_basis", "projections", "attention_heads"),
    *("ffn_mult", "memory", "memory_piece"),
)
# The part of `curriculum` that a trained kernel was filtered with.
LOW_PASS = ("method", "transition_bins")


def checkpoint_step(checkpoint: str) -> Path:
    """The step folder that `init.checkpoint` names: a run directory (its newest good step) or a step folder itself.

    Raises:
        CheckpointError: if there is none.
    """
    path = local_path(checkpoint, "init.checkpoint").resolve()
    is_step = is_step_name(path.name) and path.parent.name == "checkpoints"
    require_contained(path.parent.parent if is_step else path)
    if is_step:
        fault = manifest_fault(path)
        step, faults = (path.name, {}) if fault is None else (None, {path.name: fault})
    else:
        step, faults = newest_whole(path / "checkpoints")
    if step is None:
        why = "; ".join(f"step {number}: {fault}" for number, fault in faults.items()) or "it holds no checkpoints"
        raise CheckpointError(f"init.checkpoint: {checkpoint} cannot be used: {why}. Name a run directory.")
    return path if is_step else path / "checkpoints" / str(step)


def source_config(checkpoint: str) -> dict[str, Any]:
    """The sections `model` and `curriculum` of the run that `init.checkpoint` names, as far as weights depend on them.

    Raises:
        CheckpointError: if its config is missing, unreadable or has no such keys.
    """
    file = checkpoint_step(checkpoint).parent.parent / "config.json"
    try:
        values = read_json(file)
        seq_len = values["model"]["seq_len"]
        if type(seq_len) is not int or not 2 <= seq_len <= 2**20:
            raise ValueError(f"its model.seq_len is {shown(seq_len)}")
        return {
            "model": {name: values["model"][name] for name in (*ARCHITECTURE, "seq_len")},
            "curriculum": {name: values["curriculum"][name] for name in LOW_PASS},
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"init.checkpoint: {file} cannot be read ({error}); name a whole run directory."
        ) from None


def load_weights(checkpoint: str, fresh: Params, bins: int) -> tuple[Params, int | None]:
    """Weights of another run in the shapes of `fresh`, and the cutoff of its controller (None where it has none).

    The cutoff is given in `bins`, the bins of the new run's windows, rounded up where they differ from the source's.

    Missing slices of the head keep their fresh values, and surplus ones are dropped, so that weights move between
    objectives.

    Raises:
        CheckpointError: naming arrays that do not fit.
    """
    step = checkpoint_step(checkpoint)
    kernel = fresh["head"]["kernel"]
    declared = by_name(declared_arrays(step), "/").get("params/head/kernel", kernel)
    slices = declared.shape[0] if len(declared.shape) == 3 else len(kernel)
    head = {"kernel": jax.ShapeDtypeStruct((slices, *kernel.shape[1:]), kernel.dtype)}
    try:
        saved = read_arrays(step, {"params": {**fresh, "head": head}})["params"]
    except CheckpointError as error:
        raise CheckpointError(f"init.checkpoint: {error}") from None
    slices = min(slices, len(kernel))
    saved["head"]["kernel"] = jnp.asarray(kernel).at[:slices].set(saved["head"]["kernel"][:slices])
    weights, host = jax.tree.map(jnp.asarray, saved), read_host(step)
    if host.get("controller") is None:
        return weights, None
    source_bins = _bins(checkpoint)
    return weights, rescaled_cutoff(cutoff_of(host, source_bins, step), source_bins, bins)


def require_held(checkpoint: str, model: ModelConfig) -> None:
    """Refuses an architecture that is far larger than the weights of the run that it was taken over from.

    Raises:
        CheckpointError: saying so.
    """
    step = checkpoint_step(checkpoint)
    declared = by_name(declared_arrays(step), "/")
    held = sum(math.prod(array.shape) for name, array in declared.items() if name.startswith("params/"))
    # Only the head may be another, since slices are added and dropped.
    needed = parameter_count(dataclasses.replace(model, chunk=1))
    require_room(f"init.checkpoint: {step.parent.parent / 'config.json'}", needed, held)


def rescaled_cutoff(cutoff: int, old_bins: int, new_bins: int) -> int:
    """A cutoff of windows with `old_bins` in bins of windows with `new_bins`; full stays full, nothing is lost."""
    if cutoff >= old_bins:
        return new_bins
    return min(new_bins, math.ceil(cutoff * (new_bins - 1) / (old_bins - 1)))


def _bins(checkpoint: str) -> int:
    return freq_bins(source_config(checkpoint)["model"]["seq_len"])


def coefficients_in_use(params: Params) -> int:
    """Cosine coefficients up to and including the last one that is not zero in every kernel; 0 where there are none."""
    mixer = params["blocks"]["mixer"]
    if "spectrum" not in mixer:
        return 0
    spectrum = mixer["spectrum"]
    # One number, which every process has also where each of them holds but a part of the spectra.
    return int(jnp.max(jnp.where(spectrum != 0, jnp.arange(1, spectrum.shape[-1] + 1), 0)))
