"""Reads a config into the frozen dataclasses of `schema.py`, compares two, and refuses what a resume may not change.

All faults are collected and reported together, one sentence each, with those of the rules between keys (`rules.py`).
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from fftlm_jax.config.limits import FIXED, FREE, Check, nearest, storable
from fftlm_jax.config.schema import Config, ModelConfig, resume_policy, with_later_keys
from fftlm_jax.runtime.errors import CheckpointError, ConfigError
from fftlm_jax.runtime.untrusted import printable, shown, shown_name

_MOST_UNKNOWN = 20  # Unknown keys of a section that are named.
_MOST_FAULTS = 50  # That are told at once.
_LONGEST_TUPLE = 2**16  # Entries.
AUTO = "auto"
_TYPES = (("model", "dtype"), ("optim", "polar_dtype"))


def read_config(values: Mapping[str, Any], *, with_data: bool = True, keep_auto: bool = False) -> Config:
    """Checks names, types and ranges of a (possibly nested ConfigDict) mapping and freezes it.

    Args:
        values: every key of `configs/aligned.py`.
        with_data: whether the corpus must be there; a saved model can be used without it.
        keep_auto: leave types that are "auto" as they are: JAX, which knows the platform, is then not needed.

    Raises:
        ConfigError: with every fault found, including those of the rules between keys.
    """
    from fftlm_jax.config.rules import faults_between_keys  # Imported late: the rules need the classes above.

    faults: list[str] = []
    sections = _read_keys(Config, values, "", faults)
    faults += faults_between_keys(sections, with_data)
    if faults:
        raise ConfigError(_the_first(faults))
    config = Config(**sections)
    return config if keep_auto else settled(config)


def settled(config: Config) -> Config:
    """The config with the types that "auto" becomes on the platform that is traced for.

    Several processes on CPUs, whose units may differ, take float32.
    """
    import jax  # Imported late: configs are checked before JAX is there.

    from fftlm_jax.runtime.platform import traced_platform

    model, optim = config.model, config.optim
    if AUTO not in (model.dtype, optim.polar_dtype):
        return config
    platform = traced_platform()
    may_differ = model.dtype == AUTO and platform == "cpu" and jax.process_count() > 1
    dtype = "float32" if may_differ else model.dtype_on(platform)
    polar_dtype = optim.polar_dtype
    if polar_dtype == AUTO:
        polar_dtype = dtype if platform == "cpu" else "bfloat16"
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, dtype=dtype),
        optim=dataclasses.replace(optim, polar_dtype=polar_dtype),
    )


def with_types_of(values: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A config that resumes a run: types that are "auto" stay what they became when it began."""
    kept = dict(values)
    for section, name in _TYPES:
        old = saved.get(section)
        is_known = isinstance(old, Mapping) and old.get(name) in ("float32", "bfloat16")  # A file may hold anything.
        if is_known and kept[section][name] == AUTO:
            kept[section] = {**kept[section], name: old[name]}
    return kept


def read_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The section `model` alone, checked as `read_config` checks it.

    Raises:
        ConfigError: with every fault found.
    """
    from fftlm_jax.config.rules import faults_between_keys

    faults: list[str] = []
    model = _read_section(ModelConfig, values, "model.", faults)
    faults += faults_between_keys({"model": model})
    if faults:
        raise ConfigError(_the_first(faults))
    return model


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config, as `config.json` stores it (tuples become lists there)."""
    return dataclasses.asdict(config)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) wherever two nested dicts differ; a missing key reads as None."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found.update(differences(a, b, f"{prefix}{name}."))
        elif _as_lists(a) != _as_lists(b):
            found[prefix + name] = (a, b)
    return found


def _read_section(cls: type, values: Any, path: str, faults: list[str]) -> Any:
    """The dataclass of a section, or None if anything about it is wrong."""
    before = len(faults)
    read = _read_keys(cls, values, path, faults)
    return cls(**read) if len(faults) == before else None


def _read_keys(cls: type, values: Any, path: str, faults: list[str]) -> dict[str, Any]:
    """The keys of a section that are there, None for those that are wrong; adds to `faults`."""
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        faults.append(
            f"config.{path.rstrip('.')}: must be a section of keys, not {shown(values)}; set its keys one by one."
        )
        return {}
    hints, given, known = typing.get_type_hints(cls), dict(values.items()), {f.name: f for f in dataclasses.fields(cls)}
    unknown = [name for name in given if name not in known]
    for name in unknown[:_MOST_UNKNOWN]:
        close = nearest(str(name), known)
        faults.append(f"config.{path}{shown_name(name)}: there is no such key{close}; see configs/aligned.py.")
    if len(unknown) > _MOST_UNKNOWN:
        faults.append(f"config.{path.rstrip('.') or 'root'}: {len(unknown) - _MOST_UNKNOWN} more keys are unknown.")
    missing = [name for name in known if name not in given]
    if missing:
        faults.append(
            f"config.{path.rstrip('.') or 'root'}: lacks {', '.join(missing)}; start from configs/aligned.py and "
            "override single keys (--config.section.key=value), never a whole section."
        )
    read: dict[str, Any] = {}
    for name, field in known.items():
        if name not in given:
            continue
        if dataclasses.is_dataclass(hints[name]):
            read[name] = _read_section(hints[name], given[name], f"{path}{name}.", faults)
        else:
            read[name] = _read_value(given[name], hints[name], field.metadata["checks"], f"config.{path}{name}", faults)
    return read


def _read_value(value: Any, hint: Any, checks: tuple[Check, ...], name: str, faults: list[str]) -> Any:
    wanted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, list) and tuple in wanted:
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if isinstance(value, int) and not isinstance(value, bool) and float in wanted and int not in wanted:
        value = _as_float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        names = " or ".join(t.__name__ for t in wanted)
        faults.append(f"{name}: must be {names}, not {shown(value)} ({type(value).__name__}).")
        return None
    if isinstance(value, float) and not math.isfinite(value):
        faults.append(f"{name}: must be finite, not {value}.")
        return None
    if isinstance(value, tuple) and len(value) > _LONGEST_TUPLE:
        faults.append(f"{name}: must have at most {_LONGEST_TUPLE} entries, not {len(value)}.")
        return None
    for check in (*checks, storable):
        fault = check(value)
        if fault:
            faults.append(f"{name}: {fault}, not {shown(value)}.")
            return None
    return value


def _the_first(faults: list[str]) -> list[str]:
    more = len(faults) - _MOST_FAULTS
    return faults if more <= 0 else [*faults[:_MOST_FAULTS], f"And {more} more faults like these."]


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _as_lists(value: Any) -> Any:
    return [_as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def changes_of(saved: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Differences from a saved config that change what a run computes, as dotted key -> (old, new)."""
    found = differences(with_later_keys(saved), to_dict(config))
    # A type that is "auto" in a saved config is of an earlier version, which did not write what it became.
    types = {f"{section}.{name}" for section, name in _TYPES}
    found = {name: pair for name, pair in found.items() if name not in types or pair[0] != AUTO}
    return {name: pair for name, pair in found.items() if resume_policy(name) != FREE}


def refuse_changes(saved: dict[str, Any], config: Config) -> None:
    """Refuses every change of a run's config that `resume.allow` does not permit (by key or by section).

    Raises:
        CheckpointError: with every such difference, one a line.
    """
    changed = changes_of(saved, config)
    refused = [name for name in changed if not _is_allowed(name, config.resume.allow) or _is_fixed(name)]
    if not refused:
        return
    lines = [f"  {printable(name)}: {shown(changed[name][0])} -> {shown(changed[name][1])}" for name in refused]
    on_request = [name for name in refused if not _is_fixed(name)]
    fix = "Use the run's own values, or another --workdir"
    if len(on_request) == len(refused):
        fix += f', or permit the change with --config.resume.allow="{",".join(on_request)}"'
    raise CheckpointError("the run in this folder was started with another config:\n" + "\n".join([*lines, f"{fix}."]))


def require_same_corpus(saved: str, found: str, config: Config) -> None:
    """Compares corpus fingerprints.

    Raises:
        CheckpointError: if they differ and `resume.allow` does not name `data`.
    """
    if saved != found and not _is_allowed("data", config.resume.allow):
        raise CheckpointError(
            f"data: the corpus differs from the run's (fingerprint {saved[:12]} -> {found[:12]}, of the names and "
            "bytes of its files). Bring the old bytes back under their old names, or permit the change with "
            "--config.resume.allow=data."
        )


def _is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def _is_fixed(name: str) -> bool:
    return resume_policy(name) == FIXED
