"""Whether a state is fit to be kept: no array of it may hold a NaN or an infinity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.array_names import by_name


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    """A flag per array; on the device, so that flags are all that travels."""
    return jnp.stack([jnp.isfinite(array).all() for array in arrays])


def nonfinite_arrays(tree: Any) -> list[str]:
    """Names of the arrays with a value that is not finite."""
    named = {
        name: array for name, array in by_name(tree, "/").items() if jnp.issubdtype(jnp.result_type(array), jnp.inexact)
    }
    if not named:
        return []
    finite = np.asarray(_all_finite(list(named.values())))
    return [name for name, is_finite in zip(named, finite, strict=True) if not is_finite]
