"""Starting a run from another run's weights (`init.checkpoint`): architecture, weights and the cutoff they need."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.array_names import by_name
from fftlm_jax.config import ModelConfig
from fftlm_jax.config_rules_size import parameter_count, require_room
from fftlm_jax.cutoff import freq_bins
from fftlm_jax.errors import CheckpointError
from fftlm_jax.model.language_model import Params
from fftlm_jax.training.foreign import require_contained
from fftlm_jax.training.host_state import cutoff_of
from fftlm_jax.training.manifest import is_step_name, manifest_fault, step_numbers
from fftlm_jax.training.saved_step import declared_arrays, read_arrays, read_host
from fftlm_jax.untrusted import read_json, shown

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
    path = Path(checkpoint).resolve()
    is_step = is_step_name(path.name) and path.parent.name == "checkpoints"
    require_contained(path.parent.parent if is_step else path)
    steps = [path] if is_step else [path / "checkpoints" / str(s) for s in step_numbers(path / "checkpoints")]
    faults = {step: manifest_fault(step) for step in reversed(steps)}
    good = [step for step, fault in faults.items() if fault is None]
    if not good:
        why = "; ".join(f"step {step.name}: {fault}" for step, fault in faults.items()) or "it holds no checkpoints"
        raise CheckpointError(f"init.checkpoint: {checkpoint} cannot be used: {why}. Name a run directory.")
    return good[0]


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
    spectrum = np.asarray(mixer["spectrum"])
    used = np.flatnonzero(np.any(spectrum != 0, axis=tuple(range(spectrum.ndim - 1))))
    return int(used[-1]) + 1 if len(used) else 0
