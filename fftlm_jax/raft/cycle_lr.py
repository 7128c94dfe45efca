"""The learning rate of each cycle of reward-ranked fine-tuning: pure functions of the cycle's number, counted from 1.

    constant      base
    exponential   base * decay^(n - 1)
    step          base * decay^((n - 1) // every)
    wsd           warm-up: base * (1 + n / warmup) / 2 for `warmup` cycles; base for `stable` cycles; then in a line to
                  base * final, reached after `fall` cycles and held
    manual        the rates written down, the last one held
    adaptive      base; what the run shows changes it from cycle to cycle (`adapted`)

None is ever below `floor`. Kinds and values are those of the source card (LR quick reference), whose figures are
hypotheses. Left out: what the rate does inside a cycle. Plain Python in double precision, no JAX.
"""

import dataclasses
import math
from collections.abc import Sequence

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
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: must be a whole number of at least {least}, not {value!r}")

    def __call__(self, cycle: int) -> float:
        """Learning rate of a cycle, counted from 1."""
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
