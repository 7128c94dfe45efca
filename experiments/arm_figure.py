"""A panel that many experiments share: every seed of every arm as a dot, the mean as a bar."""

import statistics
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes

_DOT, _MEAN = "#4477aa", "#cc3311"


def arms_by_mean(values: Mapping[str, Mapping[int, float]]) -> list[str]:
    """The arms that have values, the highest mean first: a panel draws it lowest."""
    return sorted((arm for arm in values if values[arm]), key=lambda arm: -statistics.fmean(values[arm].values()))


def draw_arms(axis: Axes, values: Mapping[str, Mapping[int, float]], arms: Sequence[str], label: str) -> None:
    """Draws {arm: {seed: value}}, one row an arm from below."""
    for row, arm in enumerate(arms):
        numbers = list(values[arm].values())
        axis.plot(numbers, [row] * len(numbers), "o", color=_DOT, ms=4, alpha=0.7)
        axis.plot(statistics.fmean(numbers), row, "|", color=_MEAN, ms=14, mew=2)
    axis.set_yticks(range(len(arms)), arms)
    axis.set_xlabel(label)
    axis.grid(alpha=0.25)
