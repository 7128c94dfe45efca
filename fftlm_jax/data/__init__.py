"""Corpora as bytes, and training and evaluation windows as pure functions of the step. NumPy only."""

from fftlm_jax.data.byte_sequence import ByteSequence, FileBytes, bytes_of_files, windows_at
from fftlm_jax.data.corpus import Corpus, load_corpus
from fftlm_jax.data.windows import BatchStages, EvaluationBatch, TrainingWindows, evaluation_batches
