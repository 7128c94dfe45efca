"""What decoders have in common: what they hand out, and the keys that rows draw their random numbers from."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Block(NamedTuple):
    """What a decoder hands out at a time."""

    written: list[bytes]  # By each row.
    drafted: int  # Bytes drafted beyond the first of each round, all rows together; 0 where nothing is verified,
    accepted: int  # and how many of them stood.


def row_keys(seed: int, rows: Sequence[int]) -> jax.Array:
    """A key for each row of a seed."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.asarray(np.asarray(rows, np.uint32)))
