"""Where a fine-tuning run began: its first weights, as far as later starts of the run depend on them.

Written into the plan of cycle 0, so that the run it came from may train on, move or vanish.
"""

import dataclasses
from typing import Any

from fftlm_jax.config import Config, differences, to_dict
from fftlm_jax.errors import CheckpointError, ConfigError
from fftlm_jax.model.language_model import Params
from fftlm_jax.raft.journal import PLAN, Journal
from fftlm_jax.raft.setup import first_weights
from fftlm_jax.training.verify import state_hash
from fftlm_jax.training.warm_start import checkpoint_step
from fftlm_jax.untrusted import read_json

# Keys that deal the pools: a run that goes on from another's weights must share them, or its held-out problems may have
# been trained on.
_POOL_KEYS = ("task", "size", "reversed_answer", "sft_examples", "prompts", "held_out", "first_level")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Of the first weights."""

    weights: str  # SHA-256.
    cutoff: int  # In bins, that they are used with.
    text_window: int | None  # Bytes of a training window, where they are a language model's; else None.


def origin_of(config: Config, journal: Journal | None) -> Origin:
    """The origin as the journal has it, or as it is found now.

    Args:
        config: of the run.
        journal: of the run that is gone on with; None where one is begun.

    Raises:
        ConfigError: if the weights were fine-tuned on other pools of problems.
    """
    if journal is not None and journal.has(0, PLAN):
        try:
            return Origin(**journal.plan(0)["origin"])
        except (ValueError, LookupError, TypeError) as error:
            file = journal.folder(0) / PLAN
            raise CheckpointError(f"{file} cannot be read ({error}); begin anew with --overwrite.") from None
    params, cutoff = first_weights(config)
    return Origin(state_hash(params, {}), cutoff, _text_window(config))


def weights_of_origin(config: Config, origin: Origin) -> Params:
    """The first weights, read again.

    Raises:
        CheckpointError: if they are not those that the run began with.
    """
    params = first_weights(config)[0]
    if state_hash(params, {}) != origin.weights:
        raise CheckpointError(
            f"init.checkpoint: {config.init.checkpoint or 'the first weights'} changed since this run began; bring the "
            "old weights back, or begin anew with --overwrite."
        )
    return params


def _text_window(config: Config) -> int | None:
    if not config.init.checkpoint:
        return None
    file = checkpoint_step(config.init.checkpoint).parent.parent / "config.json"
    try:
        source = read_json(file)
        if source.get("task", "train") == "train":
            return int(source["model"]["seq_len"])
        changed = differences(_dealt_by(source), _dealt_by(to_dict(config)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"init.checkpoint: {file} cannot be read ({error}); name a whole run directory."
        ) from None
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
