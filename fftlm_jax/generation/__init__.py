"""Sampling bytes from a trained model."""

from fftlm_jax.generation.decode import Decoder, receptive_field
from fftlm_jax.generation.sampling import SamplingConfig, sample_byte
