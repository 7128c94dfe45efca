"""Where a fine-tuning run began: its first weights, as far as later starts of the run depend on them.

Written into the plan of cycle 0, so that the run it came from may train on, move or vanish.
"""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from fftlm_jax.array_names import by_name
from fftlm_jax.config import Config, differences, to_dict
from fftlm_jax.errors import ConfigError
from fftlm_jax.raft.journal import PLAN, Journal
from fftlm_jax.raft.setup import first_weights
from fftlm_jax.training.warm_start import checkpoint_step

# Keys that deal the pools: a run that goes on from another's weights must share them, or its held-out problems may have
# been trained on.
_POOL_KEYS = ("task", "size", "reversed_answer", "sft_examples", "prompts", "held_out", "first_level")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Of the first weights."""

    weights: str  # SHA-256.
    cutoff: int  # In bins, that they are used with.
    text_window: int | None  # Bytes of a training window, where they are a language model's; else None.


def origin_of(config: Config, journal: Journal) -> Origin:
    """The origin as the journal has it, or as it is found now.

    Raises:
        ConfigError: if the weights were fine-tuned on other pools of problems.
    """
    if journal.has(0, PLAN):
        return Origin(**journal.plan(0)["origin"])
    params, cutoff = first_weights(config)
    digest = hashlib.sha256()
    for name, array in sorted(by_name(params, "/").items()):
        digest.update(name.encode() + np.asarray(array).tobytes())
    return Origin(digest.hexdigest(), cutoff, _text_window(config))


def _text_window(config: Config) -> int | None:
    if not config.init.checkpoint:
        return None
    source = json.loads((checkpoint_step(config.init.checkpoint).parent.parent / "config.json").read_text())
    if source.get("task", "train") == "train":
        return int(source["model"]["seq_len"])
    mine = to_dict(config)
    changed = differences(_dealt_by(source), _dealt_by(mine))
    if changed:
        found = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
        raise ConfigError(
            [
                f"config.init.checkpoint: it was fine-tuned on pools dealt otherwise ({found}), so problems held out "
                "here may have been trained on; use the same values."
            ]
        )
    return None


def _dealt_by(config: dict[str, Any]) -> dict[str, Any]:
    return {"seed": config["seed"], **{f"raft.{name}": config["raft"][name] for name in _POOL_KEYS}}
