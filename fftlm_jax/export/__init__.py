"""Models to give away: writing them, and loading them again."""

from fftlm_jax.export.exported_model import load_exported, next_byte_logits
