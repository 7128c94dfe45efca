"""An older name of `fftlm_jax.export`, which READMEs of exported models import; of the room `export/`."""

from fftlm_jax.export import load_exported, next_byte_logits

__all__ = ("load_exported", "next_byte_logits")
