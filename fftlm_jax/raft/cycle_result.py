"""The numbers of a cycle, and comparisons between cycles.

Rates are fractions of verified completions, and so the mean reward, since rewards are 0 and 1. `held_out.rate` is what
cycles are compared by, on prompts that no training ever sees; those of `samples` are of the prompts that were trained
on, before that training.

Comparisons between cycles that several rules make. Rates count as different beyond 2 standard errors.

The standard error of a difference combines those of both cycles as if their prompts were others; they are the same
ones, so it is rather too large, and advice is rather withheld than given.

What the losses of one cycle's steps look like: whether they fall, spike or oscillate. Pure functions of a sequence.

Batches scatter by themselves, so a size is asked for that they do not reach. In simulated cycles of 54 steps whose
losses scatter by 20 % about a level and do nothing else, 1.5 times the running median alone finds a spike in 38 % and
swings of a tenth an oscillation in 55 %; as below, it is 3 % and 0.1 % (4000 cycles, normal scatter).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class HeldOutResult:
    """Scores of the weights after a cycle on the held-out prompts."""

    rate: float  # What cycles are compared by: `greedy_rate` or `sampled_rate`, as raft.score says.
    se: float  # Its standard error, prompts as clusters.
    greedy_rate: float  # One completion of every prompt, at temperature 0.
    sampled_rate: float  # Of raft.held_out_samples completions of every prompt.
    pass_at: dict[str, float]  # "k" -> chance that at least one of k samples is right (unbiased; Chen et al. 2021).
    gold_loss: float  # Nats per byte of the labelled answers.
    unique_valid: float  # Distinct right completions over right completions, by prompt.
    general_bpb: float | None  # Bits per byte of general text, where the run began from a trained language model.


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """What was sampled from the prompts of a cycle, by the weights before it."""

    prompts: int
    samples: int
    rate: float  # Verified completions over all.
    se: float
    pass_at: dict[str, float]
    never: int  # Prompts with no right completion,
    always: int  # and with nothing but right ones.
    kept: int  # Completions that the cycle is trained on.
    right_among_kept: float  # Less than 1 under the random filter alone.
    coverage: float  # Prompts with a kept completion over prompts.
    unique_valid: float  # Distinct right completions over right completions, by prompt; 1 where there are none.
    distinct_3grams: float  # Distinct byte 3-grams of all completions over their number.
    longest_repeat: float  # Mean share of a completion that its longest run of one byte takes.
    truncated: float  # Share of completions that never ended.
    mean_length: float  # Bytes of a completion.
    level: int = 1  # Of the hardest prompts, where the task has levels,
    level_rate: float = 0.0  # and the share of right completions among theirs.
    errors: int = 0  # Completions that the verifier could not judge; they are not right, but nor are they wrong.


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The training of a cycle."""

    steps: int
    lr: float  # Of the cycle.
    lr_peak: float  # Highest that a step reached.
    lr_area: float  # Sum over steps.
    losses: tuple[float, ...]  # Of every step, nats per byte of the answers, before its update.
    grad_norm: dict[str, float]  # Quantiles "0.1", "0.5", "0.9" over steps, before clipping.
    clip: float  # The norm that gradients are clipped to.
    clip_fraction: float  # Steps whose gradient was longer.
    update_ratio: float  # Median over steps of |update| / |weights trained|.


@dataclasses.dataclass(frozen=True)
class CycleResult:
    """Everything about one cycle. Cycle 0 is the start, after supervised fine-tuning: nothing was sampled for it."""

    cycle: int
    parent: int  # The cycle whose weights this one started from; of cycle 0, itself.
    held_out: HeldOutResult
    samples: SampleResult | None = None
    train: TrainResult | None = None
    multi_answer: bool = False  # Whether the task's prompts have several right answers.

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CycleResult":
        """The inverse of `to_dict`, also after a pass through JSON."""
        samples, train = values["samples"], values["train"]
        return cls(
            **{
                **values,
                "held_out": HeldOutResult(**values["held_out"]),
                "samples": SampleResult(**samples) if samples else None,
                "train": TrainResult(**{**train, "losses": tuple(train["losses"])}) if train else None,
            }
        )


_LEAST_CHANGE = 0.02  # Two points: less is flat even where many prompts measure it exactly.


def best_of(results: Sequence[CycleResult]) -> CycleResult:
    """The cycle with the highest held-out rate, the earliest of equals."""
    return max(results, key=lambda result: (result.held_out.rate, -result.cycle))


def two_errors(one: CycleResult, other: CycleResult) -> float:
    """Twice the standard error of the difference of two cycles' held-out rates."""
    return 2 * math.hypot(one.held_out.se, other.held_out.se)


def is_flat(results: Sequence[CycleResult]) -> bool:
    """Whether the rate changed little in each of the last two cycles, and in both together.

    The last is not implied: with wide intervals a steady climb consists of changes that are small one by one.
    """
    if len(results) < 3:
        return False
    newest, before = results[-1], results[-2]
    pairs = [(newest, results[newest.parent]), (before, results[before.parent]), (newest, results[before.parent])]
    return all(abs(a.held_out.rate - b.held_out.rate) < max(_LEAST_CHANGE, two_errors(a, b)) for a, b in pairs)


def still_gains(results: Sequence[CycleResult]) -> bool:
    """Whether the newest cycle is the best and clearly above the one two cycles ago (or above the start)."""
    newest, earlier = results[-1], results[max(0, len(results) - 3)]
    gain = newest.held_out.rate - earlier.held_out.rate
    return best_of(results) is newest and gain > two_errors(newest, earlier)


SPIKE = 1.5  # Of the median of the steps before.
SWING = 0.5  # Of the median of the steps that swing: from top to bottom as much as a spike stands out.
_SCATTERS = 8  # Median absolute deviations that a spike lies above that median, 5 standard deviations of normal noise.
_STEPS_BEFORE = 5  # Fewer have no median to speak of.
_CHANGES = 6  # That alternate in sign.


class Spike(NamedTuple):
    """A step, counted from 1, whose loss stands out."""

    step: int
    loss: float
    median: float  # Of the steps before.


def ends(losses: Sequence[float]) -> tuple[float, float]:
    """Means of the first and the last quarter of the steps, NaN without steps. Single steps would be noise."""
    if not losses:
        return math.nan, math.nan
    width = max(1, len(losses) // 4)
    return float(np.mean(losses[:width])), float(np.mean(losses[-width:]))


def largest_spike(losses: Sequence[float]) -> Spike | None:
    """The step that stands out most against those before it, if any stands out enough; or the first that is NaN."""
    found: list[Spike] = []
    for index, loss in enumerate(losses):
        before = np.array(losses[:index])
        if not math.isfinite(loss):
            return Spike(index + 1, loss, float(np.median(before)) if index else math.nan)
        if index < _STEPS_BEFORE:
            continue
        median = float(np.median(before))
        scatter = float(np.median(abs(before - median)))
        if loss > max(SPIKE * median, median + _SCATTERS * scatter):
            found.append(Spike(index + 1, loss, median))
    return max(found, key=lambda spike: spike.loss / max(spike.median, 1e-12), default=None)


def smallest_swing(losses: Sequence[float]) -> tuple[int, float] | None:
    """The smallest swing of a loss that goes up and down in turn for 6 steps or more, with large swings.

    Returns:
        The first step of the 6, counted from 1, and the least of their changes as a fraction of their median loss; None
        where no 6 changes in a row alternate and are all at least `SWING` of it.
    """
    changes = np.diff(losses)
    for index in range(len(changes) - _CHANGES + 1):
        turn = changes[index : index + _CHANGES]
        level = float(np.median(losses[index : index + _CHANGES + 1]))
        if np.all(turn[:-1] * turn[1:] < 0) and np.min(abs(turn)) >= SWING * level:
            return index + 2, float(np.min(abs(turn))) / max(level, 1e-12)
    return None
