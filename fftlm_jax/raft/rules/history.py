"""Comparisons between cycles that several rules make. Rates count as different beyond 2 standard errors.

The standard error of a difference combines those of both cycles as if their prompts were others; they are the same
ones, so it is rather too large, and advice is rather withheld than given.
"""

import math
from collections.abc import Sequence

from fftlm_jax.raft.cycle_result import CycleResult

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
