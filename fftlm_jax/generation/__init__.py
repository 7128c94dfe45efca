"""Sampling bytes from a trained model."""

from fftlm_jax.generation.block import Block
from fftlm_jax.generation.decode import MODES, Decoder, decoder_for
from fftlm_jax.generation.plain import PlainDecoder, receptive_field
from fftlm_jax.generation.sampling import SamplingConfig, sampling_of
from fftlm_jax.generation.text import StopStrings, TerminalText, terminal_text, until_stopped
