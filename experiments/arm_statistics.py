"""Means, spreads and paired differences of arms over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES = 10_000
_FEWEST_FOR_BOOTSTRAP = 8


class Summary(NamedTuple):
    """One arm. `difference` is its mean minus the baseline's over the seeds that both have, paired by seed."""

    arm: str
    count: int
    mean: float
    sd: float | None
    difference: float | None
    interval: tuple[float, float] | None


def compare_arms(values: Mapping[str, Mapping[int, float]], baseline: str) -> list[Summary]:
    """Summaries of all arms with any value, lowest mean first.

    Args:
        values: {arm: {seed: value}}.
        baseline: the arm to compare with.
    """
    reference = values.get(baseline, {})
    rows = []
    for arm, by_seed in values.items():
        if not by_seed:
            continue
        numbers = list(by_seed.values())
        paired = [by_seed[seed] - reference[seed] for seed in sorted(by_seed) if seed in reference]
        is_compared = arm != baseline and bool(paired)
        rows.append(
            Summary(
                arm=arm,
                count=len(numbers),
                mean=statistics.fmean(numbers),
                sd=statistics.stdev(numbers) if len(numbers) > 1 else None,
                difference=statistics.fmean(paired) if is_compared else None,
                interval=mean_interval(paired) if is_compared and len(paired) > 1 else None,
            )
        )
    return sorted(rows, key=lambda row: row.mean)


def mean_interval(numbers: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean: a reproducible percentile bootstrap, or Student's t for fewer than 8 numbers.

    A bootstrap of three numbers is little more than their range and far too narrow.
    """
    array = np.asarray(numbers, float)
    if len(array) < _FEWEST_FOR_BOOTSTRAP:
        half = stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
        return float(array.mean() - half), float(array.mean() + half)
    chosen = np.random.default_rng(0).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.quantile(array[chosen].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
