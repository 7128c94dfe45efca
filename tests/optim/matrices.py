"""Matrices with known singular values, and the comparisons that several tests need."""

import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0, dtype=np.float32):
    x = np.random.default_rng(seed).standard_normal(shape)
    if np.issubdtype(np.dtype(dtype), np.complexfloating):
        x = x + 1j * np.random.default_rng(seed + 1000).standard_normal(shape)
    return jnp.asarray(x.astype(dtype))


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0].astype(np.float32)


def with_spectrum(m, n, values, seed=0):
    """An m x n matrix with these singular values."""
    k = min(m, n)
    left, right = orthogonal(m, seed)[:, :k], orthogonal(n, seed + 1)[:k]
    return jnp.asarray((left * np.asarray(values, np.float32)) @ right)


def decaying(m, n, smallest, seed=0):
    """Singular values in a geometric series whose last is `smallest` times the Frobenius norm."""
    k = min(m, n)
    low, high = 0.0, 1.0
    for _ in range(60):
        ratio = (low + high) / 2
        values = ratio ** np.arange(k)
        low, high = (ratio, high) if values[-1] < smallest * np.linalg.norm(values) else (low, ratio)
    return with_spectrum(m, n, values / np.linalg.norm(values), seed)


def singular_values(x):
    return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


def relative(actual, expected):
    """Frobenius distance relative to the expected norm."""
    actual, expected = (np.asarray(x, np.complex128) for x in (actual, expected))
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def cosine(a, b):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
