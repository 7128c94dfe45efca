"""What fine-tuning forgets: bits per byte of general text, where a run began from a trained language model."""

import dataclasses

from fftlm_jax.config import Config
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params
from fftlm_jax.raft.origin import Origin
from fftlm_jax.training.evaluation import summary
from fftlm_jax.training.held_out import HeldOut
from fftlm_jax.training.setup import load_run_corpus


class GeneralText:
    """The held-out part of the corpus that the config's `data` names, in the windows that the model was trained on.

    Raises:
        DataError: if there is no such corpus.
    """

    def __init__(self, config: Config, origin: Origin) -> None:
        self._held_out: HeldOut | None = None
        self._cutoff = origin.cutoff
        if origin.text_window is not None:
            model = dataclasses.replace(config.model, seq_len=origin.text_window)
            self._config = dataclasses.replace(config, model=model)
            self._held_out = HeldOut(self._config, build(model)[0], load_run_corpus(self._config).held_out)

    def bpb(self, params: Params) -> float | None:
        """Next-byte bits per byte, or None where the first weights had not learned any text."""
        if self._held_out is None:
            return None
        return summary(self._held_out.tally(params, self._cutoff), self._config.objective)["bpb"]
