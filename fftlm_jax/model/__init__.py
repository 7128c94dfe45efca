"""The language model: gated multi-head long convolutions, feed-forward layers and linear byte heads (Flax NNX)."""

from fftlm_jax.model.language_model import LanguageModel, build, init_params
from fftlm_jax.model.layers import VOCABULARY
from fftlm_jax.model.loss import Scores, objective_value, score
