"""Cycle schedules as YAML: the card's three snippets and its siblings' names in, numbers that stay numbers out.

PyYAML follows YAML 1.1, where `5e-5` is a string and only `5.0e-5` a number: both are read, and the latter is written.
A schedule is written in one family of keys, below `training:` or at the top:

    learning_rate                                  constant
    base_learning_rate, lr_decay_factor            exponential (also as learning_rate, lr_decay_per_cycle)
    learning_rate_schedule: {cycle_1: ..., ...}    manual
    min_lr                                         the floor, beside any of them
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from fftlm_jax.config.limits import nearest
from fftlm_jax.raft.cycle_lr import CycleLR
from fftlm_jax.runtime.untrusted import printable, shown, shown_name

LONGEST_YAML = 1 << 16  # Characters.

_LARGEST = sys.float_info.max
_DEEPEST = 8
_BEGINNINGS = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
_ENDS = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NOT_DECIMAL = re.compile(r"[-+]?(0[0-9_bx]|.*:)")

_BASES = ("learning_rate", "base_learning_rate")
_DECAYS = ("lr_decay_factor", "lr_decay_per_cycle")
_KEYS = (*_BASES, *_DECAYS, "learning_rate_schedule", "min_lr")


def from_yaml(text: str) -> CycleLR:
    """Reads a schedule.

    Raises:
        ValueError: one sentence, for text that is no YAML, unknown keys (with the nearest known one), values that are
            no numbers, two schedules at once, or none.
    """
    content = _parse(text)
    if isinstance(content, Mapping) and set(content) == {"training"}:
        content = content["training"]
    if not isinstance(content, Mapping):
        raise ValueError("a schedule is written as keys and values, such as learning_rate: 5.0e-5")
    for key in content:
        if key not in _KEYS:
            name = f"{shown_name(key)}: is no key of a schedule{nearest(str(key), _KEYS)}"
            raise ValueError(f"{name}; they are {', '.join(_KEYS)}")
    base, decay = _one_of(content, _BASES), _one_of(content, _DECAYS)
    floor = number(content["min_lr"], "min_lr") if "min_lr" in content else 0.0
    if "learning_rate_schedule" in content:
        if base is not None or decay is not None:
            raise ValueError("learning_rate_schedule: gives every cycle its rate; remove the other schedule")
        return CycleLR("manual", rates=_rates(content["learning_rate_schedule"]), floor=floor)
    if base is None:
        raise ValueError("no schedule: write learning_rate, base_learning_rate or learning_rate_schedule")
    if decay is None:
        return CycleLR("constant", base, floor=floor)
    return CycleLR("exponential", base, decay, floor=floor)


def to_yaml(schedule: CycleLR, cycles: int) -> str:
    """Writes a schedule so that `from_yaml` reads the same rates, to the last bit, for `cycles` cycles.

    Kinds that the card has no keys for are written as the list of their rates.
    """
    lines = ["training:"]
    if schedule.kind == "constant":
        lines.append(f"  learning_rate: {float_text(schedule.base)}")
    elif schedule.kind == "exponential":
        lines.append(f"  base_learning_rate: {float_text(schedule.base)}")
        lines.append(f"  lr_decay_factor: {float_text(schedule.decay)}")
    else:
        lines.append("  learning_rate_schedule:")
        lines += [f"    cycle_{n}: {float_text(schedule(n))}" for n in range(1, cycles + 1)]
    if schedule.floor:
        lines.append(f"  min_lr: {float_text(schedule.floor)}")
    return "\n".join(lines) + "\n"


def float_text(value: float) -> str:
    """The shortest text that YAML 1.1 and Python both read as exactly this float: 5e-05 becomes 5.0e-05."""
    text = repr(float(value))
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{e}{exponent}" if e else text


def number(value: Any, name: str) -> float:
    """A number, also where YAML 1.1 made a string of it.

    Raises:
        ValueError: naming the key.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{name}: {shown(value)} is no number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name}: must be a finite number, not {shown(value)}")
    return float(value)


def _parse(text: str) -> Any:
    """YAML as data.

    Raises:
        ValueError: one sentence, for what is none or is made to harm.
    """
    if len(text) > LONGEST_YAML:
        raise ValueError(f"a schedule has at most {LONGEST_YAML} characters, not {len(text)}")
    try:
        _require_flat(text)
        _require_plain(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {printable(' '.join(str(error).split()))}") from None
    except (LookupError, TypeError, AttributeError, OverflowError) as error:  # Of tags on text that does not fit them.
        raise ValueError(f"not YAML that can be read: {shown(str(error))}") from None


def _require_flat(text: str) -> None:
    """Refuses what no schedule needs: references, a few lines of which stand for gigabytes, and deep nesting."""
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):  # As it goes: the end of deep nesting is never reached.
        depth += isinstance(token, _BEGINNINGS) - isinstance(token, _ENDS)
        if isinstance(token, yaml.AliasToken):
            raise ValueError("a schedule is written without references (*name)")
        if depth > _DEEPEST:
            raise ValueError("a schedule is no more than keys below keys, and this is nested too deeply")


def _require_plain(node: yaml.Node | None) -> None:
    """Refuses a key that is written twice, of which YAML would take the last, and a number that it takes for another.

    To YAML 1.1, 010 is 8 (octal), 0x10 is 16 and 1:30 is 90 (minutes and seconds).
    """
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name and name in seen:
            raise ValueError(f"{shown_name(name)}: is written twice; keep one of them")
        seen.add(name)
        if value.tag in _NUMBERS and _NOT_DECIMAL.match(value.value):
            raise ValueError(f"{shown_name(name)}: {shown(value.value)} is no decimal number; write it as 10 or 1.0e-5")
        _require_plain(value)


def _one_of(content: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    found = [name for name in names if name in content]
    if len(found) > 1:
        raise ValueError(f"{found[1]}: {found[0]} says the same; keep one of them")
    return number(content[found[0]], found[0]) if found else None


def _rates(content: Any) -> tuple[float, ...]:
    if not isinstance(content, Mapping) or not content:
        raise ValueError("learning_rate_schedule: write a rate per cycle, cycle_1: 5.0e-5 and so on")
    by_cycle = {}
    for key, value in content.items():
        match = re.fullmatch(r"cycle_([1-9][0-9]{0,8})", str(key))
        if not match:
            raise ValueError(f"learning_rate_schedule.{shown_name(key)}: cycles are named cycle_1, cycle_2 and so on")
        by_cycle[int(match[1])] = number(value, f"learning_rate_schedule.{key}")
    missing = next((n for n in range(1, len(by_cycle) + 1) if n not in by_cycle), None)
    if missing:
        raise ValueError(f"learning_rate_schedule.cycle_{missing}: is missing; give every cycle up to the last a rate")
    return tuple(by_cycle[n] for n in range(1, len(by_cycle) + 1))
