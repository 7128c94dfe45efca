"""Where in a word a byte stands: the first byte of a word, an inner one, or outside words.

The source documents say what each cutoff teaches (128 characters, 256 words, 512 spelling). Guessing a word from what
came before it falls on its first byte, spelling on the inner ones.
"""

import jax
import jax.numpy as jnp

WORD_PLACES = ("word_first", "word_inner", "outside")


def is_word_byte(byte: jax.Array) -> jax.Array:
    """Letters, digits and underscores of ASCII, and all bytes beyond it: the letters of UTF-8."""
    lower = byte | 32
    letter = (lower >= ord("a")) & (lower <= ord("z"))
    digit = (byte >= ord("0")) & (byte <= ord("9"))
    return letter | digit | (byte == ord("_")) | (byte >= 128)


def word_places(before: jax.Array, byte: jax.Array) -> jax.Array:
    """Index into `WORD_PLACES` of each byte, given the byte before it; any equal shapes, int32."""
    place = jnp.where(is_word_byte(before), 1, 0)
    return jnp.where(is_word_byte(byte), place, 2).astype(jnp.int32)
