"""The learning rate over cycles and within a cycle, and the changes to it that advice may name.

The learning rate of each cycle of reward-ranked fine-tuning: pure functions of the cycle's number, counted from 1.

    constant      base
    exponential   base * decay^(n - 1)
    step          base * decay^((n - 1) // every)
    wsd           warm-up: base * (1 + n / warmup) / 2 for `warmup` cycles; base for `stable` cycles; then in a line to
                  base * final, reached after `fall` cycles and held
    manual        the rates written down, the last one held
    adaptive      base; what the run shows changes it from cycle to cycle (`adapted`)

None is ever below `floor`. Kinds and values are those of the source card (LR quick reference), whose figures are
hypotheses. Left out: what the rate does inside a cycle. Plain Python in double precision, no JAX.

The learning rate within a cycle, known before its training since the number of its steps is.

Cycles have few steps, and a warm-up of fixed length eats them: with 10 steps of warm-up from 0 and a line back to 0, a
cycle of 2 steps trains at a twentieth of its rate and one of a single step not at all. So warm-up is a tenth of the
steps at most, and no step is at 0.

Changes that advice may name, each of one key: another learning rate, by the kind of schedule in use, or temperature.

A schedule with decay is changed by its factor only where decay has acted: it never changes cycle 1, nor a cycle that
still has the first rate. Base rates are given as multiples, which read the same in units of the SFT rate.
"""

import dataclasses
import math
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np

from fftlm_jax.raft.cycle_result import CycleResult

KINDS = ("constant", "exponential", "step", "wsd", "manual", "adaptive")


@dataclasses.dataclass(frozen=True)
class CycleLR:
    """A schedule over cycles; call it with a cycle's number to get the learning rate.

    Attributes:
        kind: one of `KINDS`.
        base: learning rate of cycle 1 (of the stable phase, for wsd); unused by manual.
        decay: factor per cycle (exponential) or per `every` cycles (step), in (0, 1].
        every: cycles that share a rate under step.
        warmup, stable, fall: lengths in cycles of the three phases of wsd.
        final: fraction of base that wsd falls to.
        rates: learning rates of the first cycles under manual.
        floor: no cycle is below it.

    Raises:
        ValueError: one sentence, when built from values out of range.
    """

    kind: str
    base: float = 0.0
    decay: float = 1.0
    every: int = 1
    warmup: int = 0
    stable: int = 0
    fall: int = 0
    final: float = 1.0
    rates: tuple[float, ...] = ()
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(KINDS)}")
        for name, value in (*(("rates", rate) for rate in self.rates), ("base", self.base)):
            if not math.isfinite(value) or value < 0 or (value == 0 and (name == "rates" or self.kind != "manual")):
                raise ValueError(f"{name}: a learning rate is a finite number above 0, not {value}")
        if self.kind == "manual" and not self.rates:
            raise ValueError("rates: a manual schedule needs at least one learning rate")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay: must lie in (0, 1], not {self.decay}")
        if not 0 < self.final <= 1:
            raise ValueError(f"final: must lie in (0, 1], not {self.final}")
        if not (math.isfinite(self.floor) and self.floor >= 0):
            raise ValueError(f"floor: must be a finite number of at least 0, not {self.floor}")
        lengths = {
            "every": (self.every, 1),
            "warmup": (self.warmup, 0),
            "stable": (self.stable, 0),
            "fall": (self.fall, 0),
        }
        for name, (value, least) in lengths.items():
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name}: must be a whole number of at least {least}, not {value!r}")
            object.__setattr__(self, name, int(value))  # Those of NumPy may be unsigned, and wrap around.

    def __call__(self, cycle: int) -> float:
        """Learning rate of a cycle, counted from 1."""
        cycle = int(cycle)
        if cycle < 1:
            raise ValueError(f"cycle: cycles are counted from 1, so there is no {cycle}")
        return max(self._unbounded(cycle), self.floor)

    def _unbounded(self, cycle: int) -> float:
        if self.kind == "exponential":
            return self.base * self.decay ** (cycle - 1)
        if self.kind == "step":
            return self.base * self.decay ** ((cycle - 1) // self.every)
        if self.kind == "wsd":
            return self.base * self._wsd_multiplier(cycle)
        if self.kind == "manual":
            return self.rates[min(cycle, len(self.rates)) - 1]
        return self.base

    def _wsd_multiplier(self, cycle: int) -> float:
        if cycle <= self.warmup:
            return (1 + cycle / self.warmup) / 2
        falling = cycle - self.warmup - self.stable
        if falling <= 0:
            return 1.0
        progress = min(falling / self.fall, 1.0) if self.fall else 1.0
        return 1 + (self.final - 1) * progress


def adapted(current: float, factor: float, floor: float) -> float:
    """The next cycle's learning rate under `adaptive`: the current one times a factor, so that factors compound."""
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor: must be a finite number above 0, not {factor}")
    return max(current * factor, floor)


def lr_area(schedule: CycleLR, cycles: int, steps: Sequence[int] | None = None) -> float:
    """Sum of the learning rates over `cycles` cycles, or over all their steps: what makes schedules comparable."""
    weights = [1] * cycles if steps is None else steps
    return sum(schedule(n) * weight for n, weight in zip(range(1, cycles + 1), weights, strict=True))


def step_rates(lr: float, steps: int, *, warmup: int = 0, decay: bool = False) -> np.ndarray:
    """Learning rate of every step of a cycle, float64 [steps].

    Args:
        lr: of the cycle.
        steps: of the cycle.
        warmup: steps of rising, cut to a tenth of `steps`: step s is at lr * (s + 1) / (warmup + 1).
        decay: whether the steps after them fall in a line, the first at lr and the one after the last at 0.
    """
    warmup = min(warmup, steps // 10)
    step = np.arange(steps)
    falling = 1 - (step - warmup) / (steps - warmup) if decay else np.ones(steps)
    return lr * np.where(step < warmup, (step + 1) / (warmup + 1), falling)


def epochs_for(steps_per_epoch: int, *, epochs: int, min_steps: int, max_epochs: int) -> int:
    """Passes over what was kept: `epochs`, or as many as make `min_steps` steps, but no more than `max_epochs`."""
    return min(max(epochs, -(-min_steps // steps_per_epoch)), max_epochs)


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
