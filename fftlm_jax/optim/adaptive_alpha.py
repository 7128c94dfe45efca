"""Alpha that follows the alignment of gradients and weights: alpha times now / reference, one ratio per matrix.

"Now" is an exponential mean, "reference" the mean over the first steps in which the weight is not zero: an alignment at
initialisation would be 0 for the many matrices that start at zero, and the ratio infinite.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fftlm_jax.optim.radial import RadialStats, safe_divide

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
    """Of every matrix in a leaf: each field has the leaf's batch shape."""

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
