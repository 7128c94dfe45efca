"""The weights that a fine-tuning run started from, and those after each cycle.

Written into the plan of cycle 0, so that the run it came from may train on, move or vanish.

The weights after each cycle, put together from what the journal kept: the first weights, and adapters by cycle.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.checkpoints.saved_run import checkpoint_step
from fftlm_jax.checkpoints.verification import state_hash
from fftlm_jax.config.reading import differences, to_dict
from fftlm_jax.config.schema import Config, RaftConfig
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.lora import Adapters, LoRA, init_adapters, merge
from fftlm_jax.model.parameters import by_name, misfits
from fftlm_jax.optim.leaves import path_string
from fftlm_jax.raft.journal import PLAN, Journal
from fftlm_jax.raft.raft_parts import first_weights
from fftlm_jax.runtime.errors import CheckpointError, ConfigError
from fftlm_jax.runtime.untrusted import read_json

# Keys that deal the pools: a run that goes on from another's weights must share them, or its held-out problems may have
# been trained on.
_POOL_KEYS = ("task", "size", "reversed_answer", "sft_examples", "prompts", "held_out", "first_level")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Facts of the first weights."""

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


@dataclasses.dataclass(frozen=True)
class CycleWeights:
    """Weights by cycle.

    Attributes:
        journal: of the run.
        abstract: structure of the model's weights.
        raft, lora: settings.
        seed: of fresh adapters.
    """

    journal: Journal
    abstract: Params
    raft: RaftConfig
    lora: LoRA
    seed: int

    def start(self, parent: int) -> tuple[Params, Any]:
        """What the cycle after `parent` trains, and beside what.

        Returns:
            (base, trained): weights that stay as they are and the adapters beside them, or {} and all weights.
        """
        start = self.raft.start
        if self.raft.trained == "full":
            return {}, self.after(0 if start == "restart" else parent)
        if start == "merge":
            base = self.after(parent)
            return base, init_adapters(base, self.lora, self.seed + parent)
        base = self.after(0)
        is_fresh = start == "restart" or parent == 0
        return base, init_adapters(base, self.lora, self.seed) if is_fresh else self._adapters(parent)

    def after(self, cycle: int) -> Params:
        """The model's weights after a finished cycle; 0 is supervised fine-tuning."""
        if cycle == 0 or self.raft.trained == "full":
            return self._tree(self.journal.weights(cycle))
        before = self.journal.parent(cycle) if self.raft.start == "merge" else 0
        return merge(self.after(before), self._adapters(cycle), self.lora)

    def _adapters(self, cycle: int) -> Adapters:
        adapters: Adapters = {}
        for name, array in self.journal.weights(cycle).items():
            path, _, half = name.rpartition(":")
            adapters.setdefault(path, {})[half] = jnp.asarray(array)
        return adapters

    def _tree(self, arrays: dict[str, np.ndarray]) -> Params:
        faults = misfits(arrays, by_name(self.abstract, "/"))
        if faults:
            raise CheckpointError(f"{self.journal.root}: its weights do not fit this model: {'; '.join(faults)}.")

        def leaf_of(path: tuple, leaf: Any) -> jax.Array:
            return jnp.asarray(arrays[path_string(path)], leaf.dtype)

        return jax.tree_util.tree_map_with_path(leaf_of, self.abstract)


def arrays_by_name(trained: Any, *, is_adapters: bool) -> dict[str, np.ndarray]:
    """Weights, or adapters, as the journal keeps them."""
    if is_adapters:
        return {f"{path}:{half}": np.asarray(x) for path, pair in trained.items() for half, x in pair.items()}
    return {name: np.asarray(x) for name, x in by_name(trained, "/").items()}
