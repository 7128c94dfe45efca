"""Timing that a shared, noisy machine cannot spoil much: all sides take turns, and what counts is their ratio."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Row = dict[str, Any]


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each side in each round, all sides taking turns, after one round to compile and warm up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, call in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def compare(
    label: str, sides: Mapping[str, Callable[[], Any]], rounds: int, *, per: str = "", units: Mapping[str, float] = {}
) -> Row:
    """One row: the median of every side, and its ratio to the first side (median and range of the rounds' ratios).

    Args:
        label: what is compared.
        sides: calls by name; the first is what the others are compared with.
        rounds: turns that each side takes.
        per: what the work of a side is counted in, such as "byte".
        units: how many of those one call of a side does; 1 for those not named.
    """
    unit = f"ms/{per}" if per else "ms"
    times = {name: [t / units.get(name, 1) for t in values] for name, values in interleaved(sides, rounds).items()}
    base = next(iter(times))
    row: Row = {"case": label}
    for name, values in times.items():
        ratios = [b / v for b, v in zip(times[base], values, strict=True)]
        row[f"{name} {unit}"] = float(f"{statistics.median(values):.4g}")
        if name != base:
            row[f"{name} speed-up over {base}"] = round(statistics.median(ratios), 3)
            row[f"{name} range"] = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return row
