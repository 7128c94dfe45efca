"""The kernel's cosine spectrum: the orthonormal DCT-II over the taps, and the nested masks on it.

Shapes: H conv heads, K taps (or cosine coefficients).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(maxsize=32)
def cosine_basis(kernel_len: int) -> np.ndarray:
    """Orthonormal DCT-II matrix C[K, K], float64: `spectrum = taps @ C.T`, `taps = spectrum @ C`.

    Row m is `sqrt(2/K) cos(pi (i + 1/2) m / K)` over taps i (row 0 divided by sqrt 2): the frequency m/K of Nyquist.
    """
    m, i = np.ogrid[:kernel_len, :kernel_len]
    basis = np.sqrt(2.0 / kernel_len) * np.cos(np.pi * (i + 0.5) * m / kernel_len)
    basis[0] /= np.sqrt(2.0)
    basis.setflags(write=False)
    return basis


def cosine_mask(passed: int, kernel_len: int) -> np.ndarray:
    """Mask[K] of ones for the first `passed` coefficients. A smaller mask is nested in every larger one."""
    return (np.arange(kernel_len) < passed).astype(np.float32)


def spectrum_to_taps(spectrum_HK: jax.Array) -> jax.Array:
    """Taps of kernels given by their cosine spectrum, [..., K] -> [..., K]."""
    return _apply(spectrum_HK, cosine_basis(spectrum_HK.shape[-1]))


def taps_to_spectrum(taps_HK: jax.Array) -> jax.Array:
    """Cosine spectrum of taps, [..., K] -> [..., K]; the inverse of `spectrum_to_taps`."""
    return _apply(taps_HK, cosine_basis(taps_HK.shape[-1]).T)


def _apply(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    # The matrix is tiny and constant: full precision costs nothing, and TF32 or bf16 here would break the identities.
    return jnp.matmul(x, jnp.asarray(matrix, x.dtype), precision=jax.lax.Precision.HIGHEST)
