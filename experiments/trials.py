"""Which runs a sweep consists of: arms of dotted overrides, multiplied by a grid and by seeds."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from fftlm_jax.runtime.untrusted import shown


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
    if len({key for key, _ in grid}) < len(grid):
        raise ValueError(
            f"--grid: {', '.join(key for key, _ in grid)}: a key is there twice; give all its values at once"
        )
    points = [dict(zip([key for key, _ in grid], values)) for values in itertools.product(*(v for _, v in grid))]
    trials = []
    for seed, (arm, overrides), point in itertools.product(seeds, arms, points):
        settings = tuple(f"{key}={value}" for key, value in point.items())
        trials.append(Trial(" ".join((arm, *settings)) if settings else arm, (*overrides, *settings), seed))
    names = [trial.name for trial in trials]
    long = next((name for name in names if len(name) > _LONGEST_NAME), None)
    if long is not None:
        raise ValueError(
            f"--arm: {shown(long)} is too long for a folder; take a name of at most {_LONGEST_NAME} letters"
        )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two trials would share a folder: {', '.join(twice)}; name the arms apart")
    return trials


def parse_arm(text: str) -> tuple[str, tuple[str, ...]]:
    """`name: key=value key=value` -> (name, overrides). Values in brackets or quotes may hold spaces.

    Raises:
        ValueError: for an arm without a name, or an override without a key or a value.
    """
    name, colon, overrides = text.partition(":")
    if not name.strip():
        raise ValueError(f"{text!r} has no name; write it as name: key=value")
    if "=" in name:
        raise ValueError(f"{text!r} has no name; write it as name: {text.strip() if not colon else 'key=value'}")
    found = []
    for override in split_outside_brackets(overrides, " "):
        key, _, value = override.partition("=")
        value = unquoted(value)
        if not key or not value:
            raise ValueError(f"{override!r} in arm {name!r} is not key=value")
        found.append(f"{key}={value}")
    return name.strip(), tuple(found)


def parse_grid(text: str) -> tuple[str, list[str]]:
    """`key=v1,v2` -> (key, values). Values in brackets or quotes may hold commas; blanks around values are dropped.

    Raises:
        ValueError: if there is no key or no value.
    """
    key, _, values = text.partition("=")
    found = [unquoted(value.strip()) for value in split_outside_brackets(values, ",")]
    if not key.strip() or not found or not all(found):
        raise ValueError(f"{text!r} is not key=v1,v2")
    return key.strip(), found


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` or `0-4` or both -> seeds, in this order.

    Raises:
        ValueError: for anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        last = int(found[2] or found[1]) if found else -1
        if not found or last < int(found[1]) or last - int(found[1]) >= _MOST_SEEDS:
            raise ValueError(f"--seeds: {text!r} is no list of seeds; write 0,1,2 or 0-4")
        seeds += range(int(found[1]), last + 1)
    return seeds


_MOST_SEEDS = 10_000
_LONGEST_NAME = 230  # Of the 255 that file systems take: the files beside a trial's folder end in .trial.json.tmp.


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """Non-empty parts of `text` between separators that stand outside all brackets and quotes.

    Quotes and brackets stay. An apostrophe inside a word quotes nothing.

    Raises:
        ValueError: for a quote that is not closed.
    """
    parts, depth, quote, before = [""], 0, "", separator
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not (before.isalnum() or before == "_"):
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == separator and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
        before = character
    if quote:
        raise ValueError(f"{text.strip()!r}: the quote {quote} is not closed")
    return [part for part in parts if part.strip()]


def unquoted(value: str) -> str:
    """A value without the quotes around it, where they are one pair."""
    is_quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"" and value[0] not in value[1:-1]
    return value[1:-1] if is_quoted else value
