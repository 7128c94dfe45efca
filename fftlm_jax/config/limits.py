"""What a config key is made of, checks on its values, and how large a whole model, batch or run may be.

A check returns what is wrong with a value, in words, or None. No typing error, and no config.json from elsewhere, may
ask for terabytes: the bounds lie far beyond what this package is for, and within them a reader of a checkpoint compares
with what the file holds (`require_room`).
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fftlm_jax.config.traits import MIXERS
from fftlm_jax.runtime.errors import CheckpointError

Check = Callable[[Any], str | None]

# What a resumed run may do with a key: change it (it is about how a run is watched), change it where `resume.allow`
# names it, or nothing (another value would not fit the saved arrays, or the bins that cutoffs are counted in).
FREE, ASKED, FIXED = "free", "asked", "fixed"

_LONGEST_NAME = 60  # Characters; comparing takes their square.


def at_least(low: float) -> Check:
    return lambda v: None if v >= low else f"must be at least {low}"


def at_most(high: float) -> Check:
    return lambda v: None if v <= high else f"must be at most {high}"


def above(low: float) -> Check:
    return lambda v: None if v > low else f"must be greater than {low}"


def below(high: float) -> Check:
    return lambda v: None if v < high else f"must be less than {high}"


def within(low: float, high: float) -> Check:
    return lambda v: None if low <= v <= high else f"must lie in [{low}, {high}]"


def from_zero_below(high: float) -> Check:
    return lambda v: None if 0 <= v < high else f"must lie in [0, {high})"


def one_of(*options: str) -> Check:
    def check(value: Any) -> str | None:
        return None if value in options else f"must be one of {', '.join(options)}{nearest(str(value), options)}"

    return check


def entry_of(table: Mapping[str, Any]) -> Check:
    """Names of a table that may grow later."""
    return lambda v: one_of(*table)(v)


def between(low: float, high: float) -> Check:
    return lambda v: at_least(low)(v) or at_most(high)(v)


def storable(value: Any) -> str | None:
    """The check of every key and of the entries of rows: numbers have at most 64 bits, and text can be encoded."""
    if isinstance(value, tuple):
        return next(filter(None, map(storable, value)), None)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "must keep whole numbers within 64 bits"
    try:
        if isinstance(value, str):
            value.encode("utf-8", errors="surrogateescape")  # Of bytes on a command line that are no UTF-8.
    except UnicodeEncodeError:
        return "must be text, without halves of surrogate pairs"
    return None


def key(default: Any, sentence: str, *checks: Check, resume: str = "", is_later: bool = False) -> Any:
    """A config key.

    Args:
        default: its value in `configs/aligned.py`.
        sentence: what it means; its comment there begins with it.
        checks: on its value.
        resume: what a resumed run may do with it, where that is not `on_resume` of its section.
        is_later: whether saved configs of earlier versions lack it. Its default is then what they did.
    """
    metadata = {"checks": checks, "sentence": sentence, "resume": resume, "is_later": is_later}
    return dataclasses.field(default=default, metadata=metadata)


def nearest(name: str, options: Iterable[str]) -> str:
    """A question after the option most like `name`, or nothing."""
    if len(name) > _LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, list(options), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


LARGEST_MODEL = 2**36  # Parameters.
_LARGEST_BATCH = 2**30  # Bytes of the windows of a micro-batch.
_MOST_STEPS = 2**31 - 1  # Counted in int32 on the device.


def parameter_count(model: Any) -> int:
    """Number of parameters of a model, from its config alone: nothing is built, however large it is."""
    width, hidden, layers = model.d_model, round(model.d_model * model.ffn_mult), model.n_layers
    mixer = MIXERS[model.mixer].parameters(model)
    blocks = layers * (mixer + 2 * width * hidden + 2 * width)
    bins = 0 if model.memory == "none" else model.memory_piece // 2 + 1
    memory = bins * (2 if model.memory == "aligned" else 1) + 2 * bins * width
    return 256 * width + blocks + width + memory + 256 * model.chunk * width


def require_room(where: str, needed: int, held: int) -> None:
    """Refuses a model that a config describes far larger than the arrays that come with it, before it is built.

    Args:
        where: the config, for the message.
        needed: parameters of the model.
        held: numbers in the arrays.

    Raises:
        CheckpointError: saying so. Smaller differences are left to a comparison by name.
    """
    if needed > 2 * held + (1 << 20):
        raise CheckpointError(
            f"{where}: describes a model of {needed:,} parameters, but the weights beside it are {held:,} numbers."
        )


def model_size(config: Any) -> Iterator[str]:
    """Yields what is wrong where a model is too large; needs the section `model`."""
    count = parameter_count(config.model)
    if count > LARGEST_MODEL:
        yield (
            f"config.model.d_model: the model would have {count:.1e} parameters, more than {LARGEST_MODEL:.1e}; lower "
            "d_model, n_layers, ffn_mult, kernel_len or chunk."
        )


def batch_size(config: Any) -> Iterator[str]:
    """Yields what is wrong where a micro-batch is too large; needs the sections `model`, `train` and `eval`."""
    for section in ("train", "eval"):
        windows = getattr(config, section).batch_size
        if windows * config.model.seq_len > _LARGEST_BATCH:
            yield (
                f"config.{section}.batch_size: {windows} windows of {config.model.seq_len} bytes are more than "
                f"{_LARGEST_BATCH} bytes at once; lower it."
            )
        if fault := MIXERS[config.model.mixer].batch_fault(config.model, windows):
            yield f"config.{section}.batch_size: {fault}"


def steps(config: Any) -> Iterator[str]:
    """Yields what is wrong where there are too many steps; needs the section `train`."""
    train = config.train
    if train.steps_per_epoch * train.epochs > _MOST_STEPS:
        yield (
            f"config.train.epochs: {train.epochs} of {train.steps_per_epoch} steps are more than {_MOST_STEPS} steps; "
            "lower it."
        )
