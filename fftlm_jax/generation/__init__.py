"""Sampling bytes from a trained model."""

from flax import nnx

from fftlm_jax.config import ModelConfig
from fftlm_jax.generation.block import Block
from fftlm_jax.generation.decode import MODES, Decoder
from fftlm_jax.generation.plain import PlainDecoder, receptive_field
from fftlm_jax.generation.sampling import SamplingConfig
from fftlm_jax.spectral import LowPass
