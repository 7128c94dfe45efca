"""The part of a gradient along its weight (the radial part), and a strength alpha that follows it.

G = G_perp + G_par with G_par = rho W and rho = <G,W> / <W,W>: G_par changes the norm of W (its scale), G_perp its
direction. All numbers are per matrix and in float32 or wider; <,> is the real inner product, of complex matrices too.

Alpha may follow the alignment of gradients and weights: alpha times now / reference, one ratio per matrix. "Now" is an
exponential mean, "reference" the mean over the first steps in which the weight is not zero: an alignment at
initialisation would be 0 for the many matrices that start at zero, and the ratio infinite.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Granularity = str | tuple[int, int]
GRANULARITIES = ("matrix", "out", "in")
NORMALIZATIONS = ("none", "frobenius", "second_moment")


class RadialStats(NamedTuple):
    """Numbers of every matrix in a leaf: each field has the leaf's batch shape, in float32 or wider.

    `ratio` grows as the weight shrinks, whatever the gradient does (it is 1 to 10 for small weights at the start of
    training); `cosine` is the alignment itself. Both are negative where descent would make the weight grow.
    """

    ratio: jax.Array  # rho = <G,W> / <W,W>, 0 for a zero weight.
    cosine: jax.Array  # <G,W> / (|G| |W|), in [-1, 1], 0 where either is zero.
    gradient_norm: jax.Array  # |G|, Frobenius.
    weight_norm: jax.Array  # |W|.
    parallel_norm: jax.Array  # |G_par|.
    perpendicular_norm: jax.Array  # |G_perp|.


class RadialParts(NamedTuple):
    """G = perpendicular + parallel, (batch..., in, out) in float32 or wider, and the numbers of whole matrices."""

    perpendicular: jax.Array
    parallel: jax.Array
    stats: RadialStats


def orthogonal_radial_decomposition(
    gradient: jax.Array, weight: jax.Array, *, granularity: Granularity = "matrix", min_norm: float = 0.0
) -> RadialParts:
    """Splits gradients into the part perpendicular to the weight and the part parallel to it.

    Args:
        gradient: (batch..., in, out), any float dtype or complex.
        weight: like `gradient`.
        granularity: what counts as one vector W: the "matrix"; each column, the weights of one "out" neuron; each row,
            those of one "in" neuron; or blocks of this (rows, columns).
        min_norm: a vector of this norm or less has no direction: rho is 0 and the parallel part zero.

    Raises:
        ValueError: for an unknown granularity, or blocks that do not divide the matrix.
    """
    gradient, weight = wide(gradient), wide(weight)
    grouped, axes = _groups(weight.shape, granularity)
    unit = unit_vectors(weight.reshape(grouped), axes, min_norm)
    projection = inner_product(gradient.reshape(grouped), unit, axes)
    parallel = (projection * unit).reshape(weight.shape)
    perpendicular = gradient - parallel
    stats = _stats(gradient, weight, parallel, perpendicular, min_norm)
    return RadialParts(perpendicular, parallel, stats)


def frobenius_component(parallel: jax.Array, gradient_norm: jax.Array) -> jax.Array:
    """G_par in units of an orthogonal matrix: sqrt(min(m, n)) cos(theta) W / |W|, whatever the units of the gradient.

    Args:
        parallel: (batch..., in, out).
        gradient_norm: (batch...).
    """
    return _rank_root(parallel.shape) * safe_divide(parallel, gradient_norm[..., None, None])


def second_moment_component(
    parallel: jax.Array, stats: RadialStats, root: jax.Array, count: jax.Array, beta2: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """G_par divided by the root mean square of its length over time: sqrt(min(m, n)) q / rms(q) W / |W|, |q| = |G_par|.

    Args:
        parallel: (batch..., in, out).
        stats: of this gradient.
        root: (batch...), root of the running mean of q^2, without bias correction, 0 before the first update.
        count: int32 scalar, updates done with this one.
        beta2: decay of the running mean.

    Returns:
        The component and the new root.
    """
    # hypot, and a root for the state: q^2 underflows for gradients below 1e-19, which a mean loss easily has.
    root = jnp.hypot(jnp.sqrt(beta2) * root, jnp.sqrt(1 - beta2) * stats.parallel_norm)
    corrected = root / jnp.sqrt(1 - jnp.asarray(beta2, root.dtype) ** count)
    return _rank_root(parallel.shape) * safe_divide(parallel, corrected[..., None, None]), root


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32 or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def inner_product(a: jax.Array, b: jax.Array, axes: tuple[int, ...] = (-2, -1)) -> jax.Array:
    """Real inner product over `axes`, which stay with size 1."""
    return jnp.sum((a * b.conj()).real, axis=axes, keepdims=True)


def safe_norm(x: jax.Array, axes: tuple[int, ...] = (-2, -1)) -> jax.Array:
    """Euclidean norm over `axes`, which stay with size 1: no overflow of squares, and derivative 0 at 0."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0))
    is_zero = largest == 0
    squares = jnp.sum(jnp.square(jnp.abs(x / jnp.where(is_zero, 1, largest))), axis=axes, keepdims=True)
    return largest * jnp.sqrt(jnp.where(is_zero, 1, squares))


def safe_divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0, forward and backward. A NaN in either stays one."""
    is_zero = b == 0
    return jnp.where(is_zero, 0, a / jnp.where(is_zero, 1, b))


def unit_vectors(x: jax.Array, axes: tuple[int, ...] = (-2, -1), min_norm: float = 0.0) -> jax.Array:
    """`x` over its norm along `axes`; zero where the norm is `min_norm` or less."""
    norm = safe_norm(x, axes)
    return safe_divide(x, jnp.where(norm <= min_norm, 0, norm))


def _groups(shape: tuple[int, ...], granularity: Granularity) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape to reshape matrices to, and the axes that make one vector there."""
    if granularity == "matrix":
        return shape, (-2, -1)
    if granularity in ("out", "in"):
        return shape, (-2 if granularity == "out" else -1,)
    if isinstance(granularity, str):
        raise ValueError(f"unknown granularity {granularity!r}, expected {', '.join(GRANULARITIES)} or (rows, columns)")
    (rows, columns), (m, n) = granularity, shape[-2:]
    if m % rows or n % columns:
        raise ValueError(f"blocks of {granularity} do not divide matrices of {(m, n)}")
    return (*shape[:-2], m // rows, rows, n // columns, columns), (-3, -1)


def _stats(gradient: Any, weight: Any, parallel: Any, perpendicular: Any, min_norm: float) -> RadialStats:
    g_norm, w_norm, parallel_norm, perpendicular_norm = (
        safe_norm(x)[..., 0, 0] for x in (gradient, weight, parallel, perpendicular)
    )
    projection = inner_product(gradient, unit_vectors(weight, min_norm=min_norm))[..., 0, 0]
    return RadialStats(
        ratio=safe_divide(projection, w_norm),
        cosine=safe_divide(projection, g_norm),
        gradient_norm=g_norm,
        weight_norm=w_norm,
        parallel_norm=parallel_norm,
        perpendicular_norm=perpendicular_norm,
    )


def _rank_root(shape: tuple[int, ...]) -> float:
    """Frobenius norm of an orthogonal matrix of this shape."""
    return float(min(shape[-2:])) ** 0.5


STATISTICS = ("cosine", "ratio")


@dataclass(frozen=True)
class AdaptiveAlpha:
    """Settings.

    `statistic` is "cosine", |cos(G, W)|, or "ratio", |rho|, which falls merely because weights grow. Of the steps in
    which the weight is not zero, `start` are skipped and the next `steps` make the reference; until then alpha is as
    given. `max_ratio` bounds the multiplier from above, 0 from below.
    """

    statistic: str = "cosine"
    decay: float = 0.95
    start: int = 0
    steps: int = 100
    max_ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise ValueError(f"unknown statistic {self.statistic!r}, expected one of {', '.join(STATISTICS)}")


class AdaptiveAlphaState(NamedTuple):
    """Running means of every matrix in a leaf: each field has the leaf's batch shape."""

    seen: jax.Array  # int32: updates in which the weight was not zero.
    mean: jax.Array  # float32: exponential mean of the statistic, without bias correction.
    reference: jax.Array  # float32: plain mean of the statistic over the reference steps so far.


def init_adaptive_alpha(batch: tuple[int, ...]) -> AdaptiveAlphaState:
    """State for matrices of this batch shape."""
    return AdaptiveAlphaState(jnp.zeros(batch, jnp.int32), jnp.zeros(batch, jnp.float32), jnp.zeros(batch, jnp.float32))


def adapt_alpha(
    settings: AdaptiveAlpha, stats: RadialStats, state: AdaptiveAlphaState
) -> tuple[jax.Array, AdaptiveAlphaState]:
    """Multipliers of alpha, (batch...), and the state after this update."""
    value = jnp.abs(stats.cosine if settings.statistic == "cosine" else stats.ratio).astype(jnp.float32)
    is_alive = stats.weight_norm > 0
    seen = state.seen + is_alive
    decay = jnp.float32(settings.decay)
    mean = jnp.where(is_alive, decay * state.mean + (1 - decay) * value, state.mean)
    into_reference = seen - settings.start
    is_reference = is_alive & (into_reference > 0) & (into_reference <= settings.steps)
    step = (value - state.reference) / jnp.maximum(into_reference, 1)
    reference = state.reference + jnp.where(is_reference, step, 0)
    now = safe_divide(mean, 1 - decay**seen)
    ratio = jnp.clip(safe_divide(now, reference), 0, settings.max_ratio)
    is_ready = (into_reference > settings.steps) & (reference > 0)
    return jnp.where(is_ready, ratio, 1.0), AdaptiveAlphaState(seen, mean, reference)
