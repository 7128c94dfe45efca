"""Checks on single config values: each returns what is wrong with a value, in words, or None."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any

Check = Callable[[Any], str | None]

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


def key(*checks: Check) -> Any:
    """A required config key with the checks on its value."""
    return dataclasses.field(metadata={"checks": checks})


def nearest(name: str, options: Iterable[str]) -> str:
    """A question after the option most like `name`, or nothing."""
    if len(name) > _LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, list(options), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
