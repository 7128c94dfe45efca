"""Changes that advice may name, each of one key: another learning rate, by the kind of schedule in use, or temperature.

A schedule with decay is changed by its factor only where decay has acted: it never changes cycle 1, nor a cycle that
still has the first rate. Base rates are given as multiples, which read the same in units of the SFT rate.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from fftlm_jax.raft.cycle_result import CycleResult

LOWER, RAISE = 0.7, 1.4  # The card's base x 0.7, and its 5e-5 -> 7e-5.
_STRONGER_DECAY = 0.70 / 0.85  # The card's two factors.
_GENTLE_DECAY = 0.95
_WARMER = 1.25  # A guess of moderate size; the measured step from 0.7 to 1.2 helped.
_DECAYING = ("exponential", "step")


@dataclasses.dataclass(frozen=True)
class Knobs:
    """The settings that advice refers to."""

    lr_kind: str  # One of `cycle_lr.KINDS`.
    lr_base: float  # Learning rate of cycle 1.
    lr_decay: float
    temperature: float
    anchor: float
    epochs: int
    warmup: int  # Steps of a cycle.
    max_epochs: int
    lr_source: str  # Empty; or what to change where the schedule is not in the config's own keys.


class RateChange(NamedTuple):
    """One change of the learning rate."""

    change: str  # By config key.
    first_cycle: int  # That it affects: of this run under adaptive, of one with the change otherwise.
    note: str  # A sentence's end that says what the change leaves as it is; empty where nothing need be said.


def change_rate(factor: float, results: Sequence[CycleResult], knobs: Knobs) -> RateChange:
    """What changes the newest cycle's learning rate by about `factor`, either `LOWER` or `RAISE`."""
    newest = results[-1]
    if knobs.lr_kind == "adaptive":
        following = newest.cycle + 1
        return RateChange(f"raft.lr=adaptive: cycle {following} at {factor:g} x the last rate", following, "")
    if knobs.lr_source:
        return RateChange(f"{knobs.lr_source} x {factor:g}", 1, "")
    if knobs.lr_kind == "manual":
        return RateChange(f"raft.lr_rates x {factor:g}", 1, "")
    decayed = [r.cycle for r in results if r.train and r.train.lr < knobs.lr_base * (1 - 1e-9)]
    lr = newest.train.lr if newest.train else knobs.lr_base
    if factor < 1:
        decay = round(knobs.lr_decay * _STRONGER_DECAY, 2)
        is_decay_at_fault = newest.cycle in decayed
    else:
        decay = _GENTLE_DECAY
        # For a low rate only where it took at least what is to be given back.
        is_decay_at_fault = newest.cycle in decayed and lr * factor <= knobs.lr_base and knobs.lr_decay < decay
    if knobs.lr_kind in _DECAYING and is_decay_at_fault:
        change = f"raft.lr_decay {knobs.lr_decay:.2f} -> {decay:.2f}"
        return RateChange(change, max(2, min(decayed)), "; decay never changes cycle 1")
    change = f"raft.lr_base x {factor:g} (cycle 1 at {knobs.lr_base * factor:.3g}, not {knobs.lr_base:.3g})"
    return RateChange(change, 1, "")


def warmer(knobs: Knobs) -> str:
    """The change to a higher sampling temperature."""
    return f"raft.temperature {knobs.temperature:g} -> {max(0.5, round(_WARMER * knobs.temperature, 2)):g}"
