"""Corpora as bytes, and training and evaluation windows as pure functions of the step. NumPy only."""

from fftlm_jax.data.batch_stages import BatchStages
from fftlm_jax.data.byte_sequence import ByteSequence, windows_at
from fftlm_jax.data.corpus import Corpus, load_corpus
from fftlm_jax.data.file_bytes import FileBytes, bytes_of_files
from fftlm_jax.data.prefetch import Prefetcher
from fftlm_jax.data.windows import EvaluationBatch, TrainingWindows, evaluation_batches
