"""The weights after each cycle, put together from what the journal kept: the first weights, and adapters by cycle."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.array_names import by_name, misfits
from fftlm_jax.config import RaftConfig
from fftlm_jax.errors import CheckpointError
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.lora import Adapters, LoRA, init_adapters, merge
from fftlm_jax.raft.journal import Journal


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
            return jnp.asarray(arrays[jax.tree_util.keystr(path, simple=True, separator="/")], leaf.dtype)

        return jax.tree_util.tree_map_with_path(leaf_of, self.abstract)


def arrays_by_name(trained: Any, *, is_adapters: bool) -> dict[str, np.ndarray]:
    """Weights, or adapters, as the journal keeps them."""
    if is_adapters:
        return {f"{path}:{half}": np.asarray(x) for path, pair in trained.items() for half, x in pair.items()}
    return {name: np.asarray(x) for name, x in by_name(trained, "/").items()}
