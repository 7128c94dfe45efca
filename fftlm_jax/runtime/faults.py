"""Named places where a test makes the process die or the disk fill. Inert unless main.py finds FFTLM_JAX_FAULT set.

    FFTLM_JAX_FAULT=kill@before_manifest:10 python main.py ...

Entries are action@place or action@place:number, separated by commas; the number is the step, cycle or cutoff that the
place is passed with. Each entry acts once.
"""

import errno
import os
import signal
from typing import NamedTuple

from fftlm_jax.runtime.errors import UsageError

VARIABLE = "FFTLM_JAX_FAULT"
PLACES = (
    *("before_arrays", "after_arrays", "before_manifest", "after_manifest", "during_deletion"),  # Of a save; its step.
    "mid_step",  # The step was sent to the device, and nothing of it was read yet.
    "before_raise_save",  # The cutoff was raised before this step, and no checkpoint knows of it.
    "in_compile",  # Of the step for this cutoff.
    # A phase of this cycle is written but not yet listed as done.
    *("raft_plan", "raft_samples", "raft_verdicts", "raft_kept", "raft_weights", "raft_result"),
)
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
ACTIONS = (*_SIGNALS, "full", "stop")


class Stopped(BaseException):
    """Action `stop`: stands for the death of the process where a test cannot spare one."""


class _Fault(NamedTuple):
    action: str
    place: str
    number: int | None


_armed: list[_Fault] = []


def arm(text: str) -> None:
    """Sets what happens where, in the form of the variable's value; "" disarms.

    Raises:
        UsageError: for an action, a place or a number that does not exist.
    """
    _armed[:] = [_parse(entry) for entry in text.split(",")] if text else []


def armed() -> bool:
    """Whether any fault has yet to happen."""
    return bool(_armed)


def point(place: str, number: int) -> None:
    """The program is at a named place."""
    if not _armed:
        return
    for fault in [f for f in _armed if f.place == place and f.number in (None, number)]:
        _armed.remove(fault)
        _act(fault.action)


def _act(action: str) -> None:
    if action == "stop":
        raise Stopped
    if action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), _SIGNALS[action])


def _parse(entry: str) -> _Fault:
    action, at, rest = entry.partition("@")
    place, colon, number = rest.partition(":")
    if action not in ACTIONS or not at or place not in PLACES or (colon and not number.isdecimal()):
        raise UsageError(
            f"{VARIABLE}: {entry!r} is not action@place or action@place:number, with an action of {', '.join(ACTIONS)} "
            f"and a place of {', '.join(PLACES)}."
        )
    return _Fault(action, place, int(number) if colon else None)
