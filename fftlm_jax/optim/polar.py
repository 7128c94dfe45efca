"""The polar factor of a matrix, exactly or by iterations, and the coefficients of Polar Express.

Coefficients of Polar Express: the composition of odd quintics that best maps [lower, 1] to 1.

Amsel et al., "The Polar Express" (arXiv 2505.16932). Each quintic `a x + b x^3 + c x^5` is the minimax approximation of
1 on the interval that the ones before it leave, found by Remez exchange. Computed here instead of written down, so that
every number of steps and every lower bound has its own best coefficients; the tests compare with the published digits.

The polar factor of a matrix: X = U S V^H becomes U V^H, exactly or by a few matrix products.

The iterations are odd polynomials `p(X) = a X + (b A + c A^2) X` with `A = X X^H`: they act on the singular values and
leave the singular vectors alone. A few steps bring them near 1, not to 1, which is all that Muon needs. Five steps
give, in float32 and for singular values above these fractions of the Frobenius norm:

    ns5            [0.68, 1.20] above 0.003, [0.68, 1.13] above 0.01     Jordan, github.com/KellerJordan/Muon
    polar_express  [0.86, 1.14] above 0.001                              Amsel et al., arXiv 2505.16932
    dion           [0.98, 1.03] above 0.01                               Ahn et al., arXiv 2504.05295

Products in bfloat16 widen each end by up to 0.05, and those of `gram` (polar_express by other products) to [0.7, 1.3].
Smaller singular values are only raised towards 1, and 0 stays 0. A vector comes out with norm p(1): 0.70 for ns5.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.runtime.platform import multiply, traced_platform

Quintic = tuple[float, float, float]


@functools.cache
def polar_express_coefficients(
    steps: int, *, lower: float = 1e-3, cushion: float = 0.02, safety: float = 1.02
) -> tuple[Quintic, ...]:
    """Coefficients (a, b, c) of each step.

    Args:
        steps: number of quintics, at least 1.
        lower: smallest singular value, relative to the norm, that is to arrive near 1.
        cushion: no interval is narrower than [cushion * upper, upper], since the best quintic for a wider one is too
            steep at 0 for finite precision.
        safety: every step but the last takes its argument divided by this, so that rounding cannot leave the interval.

    Returns:
        `steps` triples. The defaults are those of the modded-nanogpt speed runs; `cushion=0.02407327424182761` and
        `safety=1` give the table of the paper, which divides by 1.01 afterwards.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    upper, triples = 1.0, []
    for step in range(steps):
        a, b, c = _minimax_quintic(max(lower, cushion * upper), upper)
        # The cushion centres the image of a narrower interval around 1; this centres the image of the true one.
        centre = (_evaluate(a, b, c, lower) + _evaluate(a, b, c, upper)) / 2
        margin = safety if step < steps - 1 else 1.0
        a, b, c = a / centre / margin, b / centre / margin**3, c / centre / margin**5
        triples.append((a, b, c))
        lower = _evaluate(a, b, c, lower)
        upper = 2 - lower
    return tuple(triples)


def _evaluate(a: float, b: float, c: float, x: float) -> float:
    return x * (a + x * x * (b + x * x * c))


def _minimax_quintic(lower: float, upper: float) -> Quintic:
    """The odd quintic with the smallest largest distance to 1 on [lower, upper]."""
    if lower / upper > 1 - 5e-6:
        # The exchange is singular on a point; this is its limit, the Newton-Schulz quintic.
        return 1.875 / upper, -1.25 / upper**3, 0.375 / upper**5
    inner = np.array([0.75 * lower + 0.25 * upper, 0.25 * lower + 0.75 * upper])
    previous = np.inf
    for _ in range(100):
        points = np.array([lower, *inner, upper])
        # The error alternates in sign, with equal size, at the ends and at the two extrema between them.
        system = np.stack([points, points**3, points**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        if abs(previous - error) < 1e-15:
            break
        previous = error
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))
    return float(a), float(b), float(c)


PolarMethod = str | Callable[[jax.Array], jax.Array] | Sequence[Quintic]

METHODS = ("ns5", "polar_express", "gram", "dion", "svd")
PRECONDITIONINGS = ("frobenius", "aol", "schatten")

_NS5: Quintic = (3.4445, -4.7750, 2.0315)
_DION: tuple[Quintic, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
# Rounding errors of a Gram matrix grow with each step that does not see X, so it is formed anew after two.
_GRAM_RESTART = 2


def polar(
    x: jax.Array,
    method: PolarMethod = "polar_express",
    *,
    steps: int | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    safety: float | None = None,
    preconditioning: str = "frobenius",
    name: str = "the array",
) -> jax.Array:
    """Polar factor of every matrix in `x`, in the dtype of `x`.

    The norm has no epsilon: inputs of any scale that their dtype holds give the same result, and a zero matrix gives
    zero. A NaN stays in its own matrix.

    Args:
        x: (..., m, n), real or complex.
        method: "ns5", "polar_express" or "dion" (tables of coefficients); "gram" (those of polar_express, iterated on
            the smaller m x m Gram matrix where n >= 2 m); "svd" (the reference; null directions stay 0); a sequence of
            (a, b, c); or a function, given (..., m, n) with m <= n and Frobenius norms of 1 / safety in `dtype`.
        steps: polynomials to apply, 5 by default. "dion" repeats its last one beyond 5.
        dtype: of the products; float32 on CPU and bfloat16 elsewhere by default. Complex matrices keep their own.
        safety: divides the unit norm, so that rounding cannot push a singular value beyond 1; 1.02 for polar_express
            and gram, 1 for all others by default.
        preconditioning: "frobenius" norm 1; "schatten" 4-norm 1; or "aol", which rescales rows (Boissin et al., arXiv
            2512.04632) and so finds the factor of a slightly different matrix. All bound singular values by 1.
        name: of the leaf, for errors.

    Raises:
        ValueError: for arrays of rank below 2, unknown methods and preconditionings.
    """
    if x.ndim < 2:
        raise ValueError(f"{name} has shape {x.shape}: a polar factor needs rank 2 or more")
    if preconditioning not in PRECONDITIONINGS:
        raise ValueError(f"unknown preconditioning {preconditioning!r}, expected one of {', '.join(PRECONDITIONINGS)}")
    if x.size == 0:
        return x
    if safety is None:
        safety = 1.02 if method in ("polar_express", "gram") else 1.0
    # The smaller side is iterated: every product but two is then with an m x m matrix.
    tall = x.shape[-2] > x.shape[-1]
    y = unit_frobenius(jnp.swapaxes(x, -1, -2) if tall else x) / safety
    if isinstance(method, str) and method == "svd":
        y = _polar_svd(y)
    else:
        y = _apply(y.astype(_compute_dtype(y.dtype, dtype)), method, steps, preconditioning, safety)
    return (jnp.swapaxes(y, -1, -2) if tall else y).astype(x.dtype)


def unit_frobenius(x: jax.Array) -> jax.Array:
    """Every matrix divided by its Frobenius norm, in float32 or wider; zero stays zero.

    The largest entry goes first: squares of 1e-30 or 1e30 do not fit into float32.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    x = x / jnp.where(largest == 0, 1, largest)
    norm = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x)), axis=(-2, -1), keepdims=True))
    return x / jnp.where(norm == 0, 1, norm)


def _compute_dtype(wide: jax.typing.DTypeLike, dtype: jax.typing.DTypeLike | None) -> jax.typing.DTypeLike:
    if jnp.issubdtype(wide, jnp.complexfloating):
        return wide
    if dtype is not None:
        return dtype
    return wide if traced_platform() == "cpu" else jnp.bfloat16


def _apply(x: jax.Array, method: PolarMethod, steps: int | None, preconditioning: str, safety: float) -> jax.Array:
    """The method on (..., m, n) with m <= n, of unit norm, in the compute dtype."""
    gram = None
    if preconditioning != "frobenius":
        x, gram = _precondition(x, preconditioning, safety)
    if callable(method):
        return method(x)
    coefficients = _coefficients(method, steps)
    if isinstance(method, str) and method == "gram" and x.shape[-1] >= 2 * x.shape[-2]:
        x = _iterate_gram(x, coefficients[:_GRAM_RESTART])
        return _iterate_gram(x, coefficients[_GRAM_RESTART:])
    # Unrolled: XLA then keeps a sharding constraint through the steps, where it gathers inside a scan.
    for a, b, c in coefficients:
        gram = _gram(x) if gram is None else gram
        x, gram = a * x + _product(b * gram + c * _product(gram, gram), x), None
    return x


def _coefficients(method: str | Sequence[Quintic], steps: int | None) -> tuple[Quintic, ...]:
    if not isinstance(method, str):
        return tuple((float(a), float(b), float(c)) for a, b, c in method)
    steps = 5 if steps is None else steps
    if method == "ns5":
        return (_NS5,) * steps
    if method == "dion":
        return (_DION + _DION[-1:] * steps)[:steps]
    if method in ("polar_express", "gram"):
        return polar_express_coefficients(steps)
    raise ValueError(f"unknown polar method {method!r}, expected one of {', '.join(METHODS)}")


def _gram(x: jax.Array) -> jax.Array:
    return _product(x, jnp.swapaxes(x.conj(), -1, -2))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return multiply(a, b).astype(a.dtype)


def _iterate_gram(x: jax.Array, coefficients: Sequence[Quintic]) -> jax.Array:
    """The same polynomials, multiplied together as m x m matrices and applied to X once."""
    gram, product, identity = _gram(x), None, jnp.eye(x.shape[-2], dtype=x.dtype)
    for step, (a, b, c) in enumerate(coefficients):
        factor = a * identity + b * gram + c * _product(gram, gram)
        product = factor if product is None else _product(factor, product)
        if step + 1 < len(coefficients):
            gram = _product(_product(factor, gram), factor)
    return x if product is None else _product(product, x)


def _precondition(x: jax.Array, kind: str, safety: float) -> tuple[jax.Array, jax.Array]:
    """X rescaled to singular values below 1 / safety but larger than the Frobenius norm allows, and its Gram matrix."""
    gram = _gram(x)
    size = jnp.abs(gram).astype(jnp.promote_types(x.real.dtype, jnp.float32))
    if kind == "aol":
        bound = jnp.sum(size, axis=-1, keepdims=True)
    else:
        bound = jnp.sqrt(jnp.sum(jnp.square(size), axis=(-2, -1), keepdims=True))
    scale = jnp.where(bound > 0, 1 / (safety * jnp.sqrt(jnp.where(bound > 0, bound, 1))), 0).astype(x.real.dtype)
    return x * scale, gram * scale * jnp.swapaxes(scale, -1, -2)


def _polar_svd(x: jax.Array) -> jax.Array:
    """The polar factor by singular values. Those lost in rounding stay 0: else a masked column would come alive."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    tolerance = max(x.shape[-2:]) * jnp.finfo(x.dtype).eps * s[..., :1]
    return (u * (s > tolerance)[..., None, :].astype(x.dtype)) @ vh
