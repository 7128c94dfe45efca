"""The largest eigenvalue of a symmetric matrix that is known by its products alone: Lanczos, fully reorthogonalised.

Without reorthogonalisation, round-off brings converged directions back and counts them twice. With a few dozen products
of vectors as long as a small model's parameters it costs next to nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh_tridiagonal


class Eigenpair(NamedTuple):
    """`|A vector - value vector| = error` for the unit `vector`: an eigenvalue lies within `error` of `value`."""

    value: float
    vector: np.ndarray
    error: float
    products: int


def top_eigenpair(
    product: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    *,
    most_products: int = 80,
    tolerance: float = 1e-2,
) -> Eigenpair:
    """The algebraically largest eigenvalue of a symmetric matrix A [size, size], and a vector of it.

    Args:
        product: q -> A q for unit vectors q [size], float64.
        start: a vector [size] that is not orthogonal to the wanted one, such as a random one.
        most_products: where to stop at the latest; `error` then says how close it came.
        tolerance: relative error at which to stop before. The value itself is closer still (error^2 over the gap).

    Returns:
        The pair; `value` never lies above the largest eigenvalue (but for round-off).
    """
    basis = np.empty((min(most_products, start.size), start.size))
    basis[0] = start / np.linalg.norm(start)
    diagonal, beside = [], []
    for k in range(len(basis)):
        image = np.asarray(product(basis[k]), np.float64)
        diagonal.append(basis[k] @ image)
        for _ in range(2):  # Once leaves what round-off brought in; twice is enough (Parlett).
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        length = float(np.linalg.norm(image))
        value, weights = _top_of_tridiagonal(diagonal, beside)
        error = length * abs(weights[-1])
        # No length left: the space is closed under A, and with a random start that is all of A that matters.
        if error <= tolerance * abs(value) or length <= 1e-12 * abs(value) or k + 1 == len(basis):
            break
        beside.append(length)
        basis[k + 1] = image / length
    return Eigenpair(value, weights @ basis[: k + 1], error, k + 1)


def _top_of_tridiagonal(diagonal: list[float], beside: list[float]) -> tuple[float, np.ndarray]:
    last = len(diagonal) - 1
    values, vectors = eigh_tridiagonal(diagonal, beside, select="i", select_range=(last, last))
    return float(values[0]), vectors[:, 0]
