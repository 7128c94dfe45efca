"""Corpora as bytes, and training and evaluation windows as pure functions of the step. NumPy only."""

from fftlm_jax.data.batch_stages import BatchStages
from fftlm_jax.data.corpus import Corpus, load_corpus
from fftlm_jax.data.prefetch import Prefetcher
from fftlm_jax.data.windows import EvaluationBatch, TrainingWindows, evaluation_batches
