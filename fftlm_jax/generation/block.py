"""What decoders have in common: what they hand out, and the keys that rows draw their random numbers from."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Block(NamedTuple):
    """Bytes that each row wrote, how many bytes were drafted beyond the first of their round, how many of them stood."""

    written: list[bytes]
    drafted: int
    accepted: int


def row_keys(seed: int, rows: Sequence[int]) -> jax.Array:
    """A key for each row of a seed."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.asarray(np.asarray(rows, np.uint32)))
