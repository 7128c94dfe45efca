"""The name that READMEs of models exported by version 0.1 import; new code imports `fftlm_jax.export`."""

from fftlm_jax.export import load_exported, next_byte_logits

__all__ = ("load_exported", "next_byte_logits")
