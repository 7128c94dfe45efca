"""Sampling bytes from a trained model."""

from fftlm_jax.generation.cached_decoding import MODES, Decoder, decoder_for
from fftlm_jax.generation.plain_decoding import PlainDecoder, receptive_field
from fftlm_jax.generation.sampling import DecodedBytes, SamplingConfig, sampling_of
from fftlm_jax.generation.text import StopStrings, TerminalText, terminal_text, until_stopped
