"""Which runs a sweep consists of: arms of dotted overrides, multiplied by a grid and by seeds."""

import dataclasses
import itertools
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: an arm's overrides (`section.key=value`) and a seed; `folder` names its run directory if not ""."""

    arm: str
    overrides: tuple[str, ...]
    seed: int
    folder: str = ""

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return self.folder or f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', self.arm)}-seed{self.seed}"


def trials_of(
    arms: Sequence[tuple[str, Sequence[str]]], grid: Sequence[tuple[str, Sequence[str]]], seeds: Sequence[int]
) -> list[Trial]:
    """Every arm x every point of the grid x every seed; seeds vary slowest, so that whole comparisons finish first."""
    points = [dict(zip([key for key, _ in grid], values)) for values in itertools.product(*(v for _, v in grid))]
    trials = []
    for seed, (arm, overrides), point in itertools.product(seeds, arms, points):
        settings = tuple(f"{key}={value}" for key, value in point.items())
        trials.append(Trial(" ".join((arm, *settings)) if settings else arm, (*overrides, *settings), seed))
    names = [trial.name for trial in trials]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two trials would share a folder: {', '.join(twice)}; name the arms apart")
    return trials


def parse_arm(text: str) -> tuple[str, tuple[str, ...]]:
    """`name: key=value key=value` -> (name, overrides). Values in brackets may hold spaces.

    Raises:
        ValueError: for an override without a key or a value.
    """
    name, _, overrides = text.partition(":")
    found = tuple(split_outside_brackets(overrides, " "))
    for override in found:
        key, _, value = override.partition("=")
        if not key or not value:
            raise ValueError(f"{override!r} in arm {name!r} is not key=value")
    return name.strip(), found


def parse_grid(text: str) -> tuple[str, list[str]]:
    """`key=v1,v2` -> (key, values). Values in brackets may hold commas.

    Raises:
        ValueError: if there is no key or no value.
    """
    key, _, values = text.partition("=")
    found = split_outside_brackets(values, ",")
    if not key or not found:
        raise ValueError(f"{text!r} is not key=v1,v2")
    return key, found


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """Non-empty parts of `text` between separators that stand outside all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part]
