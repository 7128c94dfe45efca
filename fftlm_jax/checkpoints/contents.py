"""The host's state of a checkpoint, as JSON has it: which fields there must be, and of what kind.

A field that is missing or of another kind is said by name; nothing of such a state is used.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from fftlm_jax.model.language_model import Params
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.runtime.untrusted import shown

_Check = tuple[Callable[[Any], bool], str]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_raise(value: Any) -> bool:
    """(step, old, new, improvement, bound); older checkpoints have no bound."""
    return (
        isinstance(value, list)
        and len(value) in (4, 5)
        and all(map(_is_int, value[:3]))
        and all(number is None or _is_finite(number) for number in value[3:])
    )


_COUNT: _Check = (lambda v: _is_int(v) and v >= 0, "a whole number of at least 0")
_SECONDS: _Check = (lambda v: _is_finite(v) and v >= 0, "a number of at least 0")
_OBJECT: _Check = (lambda v: isinstance(v, dict), "an object")

_TRAINING: dict[str, _Check] = {
    "config": _OBJECT,
    "corpus": (lambda v: isinstance(v, str), "a text"),
    "scores": _OBJECT,
    "evaluated_at": (lambda v: v is None or _is_int(v), "a whole number or null"),
    "best_bpb": (lambda v: v is None or _is_finite(v), "a number or null"),
    "train_loss": (_is_number, "a number"),  # NaN where every step so far was passed over.
    "epoch_loss": (
        lambda v: isinstance(v, list) and len(v) == 2 and _is_finite(v[0]) and _COUNT[0](v[1]),
        "a sum of losses and their number",
    ),
    "elapsed": _SECONDS,
    "train_seconds": _SECONDS,
    "metrics_bytes": _COUNT,
    "samples_bytes": _COUNT,
}
_CONTROLLER: dict[str, _Check] = {
    "losses": (lambda v: isinstance(v, list) and all(map(_is_finite, v)), "a list of numbers"),
    "raises": (lambda v: isinstance(v, list) and all(map(_is_raise, v)), "a list of (step, from, to, improvement)"),
}


def require_training_host(host: Any, bins: int, where: Path) -> None:
    """Checks what training goes on from.

    Args:
        host: of a checkpoint.
        bins: of the run's windows; no cutoff exceeds them.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: naming every field that is missing or wrong.
    """
    cutoff_of(host, bins, where)
    controller = host["controller"]
    faults = [*_faults(host, _TRAINING, ""), *_faults(controller, _CONTROLLER, "controller.")]
    loss_before = controller.get("loss_before")  # Older checkpoints have none.
    if loss_before is not None and not _is_finite(loss_before):
        faults.append(f"controller.loss_before must be a number or null, not {shown(loss_before)}")
    _refuse(faults, where)


def cutoff_of(host: Any, bins: int, where: Path) -> int:
    """The cutoff that a checkpoint's weights are used with, which is all that reading a model takes of the host.

    Raises:
        CheckpointError: if it does not say, or says one outside of 1..bins.
    """
    controller = host.get("controller") if isinstance(host, Mapping) else None
    cutoff = controller.get("cutoff") if isinstance(controller, Mapping) else None
    if not _is_int(cutoff) or not 1 <= cutoff <= bins:
        _refuse([f"controller.cutoff must be a whole number within 1 and {bins}, not {shown(cutoff)}"], where)
    return cutoff


def text_of(host: Any, name: str, where: Path) -> str:
    """A field that is a text.

    Raises:
        CheckpointError: if it is none.
    """
    value = host.get(name) if isinstance(host, Mapping) else None
    if not isinstance(value, str):
        _refuse([f"{name} must be a text, not {shown(value)}"], where)
    return value


def _faults(values: Mapping[str, Any], checks: Mapping[str, _Check], prefix: str) -> list[str]:
    return [
        f"{prefix}{name} must be {kind}, not {shown(values.get(name, 'missing'))}"
        for name, (is_right, kind) in checks.items()
        if name not in values or not is_right(values[name])
    ]


def _refuse(faults: list[str], where: Path) -> None:
    if faults:
        raise CheckpointError(f"{where}: its host state cannot be used: {'; '.join(faults)}.")


class TrainState(NamedTuple):
    """Everything that training changes on the device. `step` counts updates; randomness is a function of it."""

    params: Params
    opt_state: optax.OptState
    ema: optax.EmaState | None  # Running average of the weights, not yet divided by its total weight; None for none.
    step: jax.Array  # int32 scalar
    skipped: jax.Array  # int32 scalar: non-finite steps in a row that were passed over.
    halted: jax.Array  # bool scalar: a non-finite step was met, and one too many; nothing changes any more.


def averaged_params(decay: float, ema: optax.EmaState) -> Params:
    """The weights' average over the steps so far; NaN before the first."""
    return optax.tree.bias_correction(ema.ema, decay, ema.count)
