"""What fine-tuning forgets: bits per byte of general text, where a run began from a trained language model."""

import json

from flax import nnx

from fftlm_jax.config import Config
from fftlm_jax.model.language_model import Params
from fftlm_jax.training.evaluation import summary
from fftlm_jax.training.held_out import HeldOut
from fftlm_jax.training.setup import load_run_corpus
from fftlm_jax.training.warm_start import checkpoint_step


class GeneralText:
    """The held-out part of the config's corpus, read when it is first scored."""

    def __init__(self, config: Config, graph: nnx.GraphDef) -> None:
        self._config, self._graph = config, graph
        self._is_scored = _began_from_language_model(config.init.checkpoint)
        self._held_out: HeldOut | None = None

    def bpb(self, params: Params, cutoff: int) -> float | None:
        """Next-byte bits per byte, or None where the first weights had not learned any text."""
        if not self._is_scored:
            return None
        if self._held_out is None:
            self._held_out = HeldOut(self._config, self._graph, load_run_corpus(self._config).held_out)
        return summary(self._held_out.tally(params, cutoff), self._config.objective)["bpb"]


def _began_from_language_model(checkpoint: str) -> bool:
    if not checkpoint:
        return False
    config = json.loads((checkpoint_step(checkpoint).parent.parent / "config.json").read_text())
    return config.get("task", "train") == "train"
