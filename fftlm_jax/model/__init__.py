"""The language model: gated multi-head long convolutions, feed-forward layers and linear byte heads (Flax NNX)."""

from fftlm_jax.model.language_model import VOCABULARY, LanguageModel, build, init_params
from fftlm_jax.model.objectives import Scores, objective_value, score
