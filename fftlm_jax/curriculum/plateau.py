"""The plateau rule: the cutoff is raised when the loss stops falling.

A larger threshold finds plateaus *sooner*: it is the improvement that must be exceeded to stay. The source documents
advise the opposite of their own formula. Cutoffs rise too fast -> smaller threshold or longer window.

The simple test compares the improvement as it is seen, noise included; the confidence test compares its upper bound, so
that noise alone seldom passes for a plateau. Both are asked at every check: what is rare once is less rare in ten.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from fftlm_jax.curriculum.ladder import next_rung


def relative_improvement(losses: Sequence[float], window: int) -> float | None:
    """How much the mean of the last half window fell below that of the half before it, relative to the latter.

    Args:
        losses: training losses in nats, oldest first.
        window: how many of the last losses count; two equal halves.

    Returns:
        The improvement (0.005 = half a per cent, negative when the loss rose), or None with fewer than `window` losses.
    """
    if len(losses) < window:
        return None
    half = window // 2
    recent = losses[-2 * half :]
    first, second = sum(recent[:half]) / half, sum(recent[half:]) / half
    return (first - second) / first if first else 0.0


def improvement_bound(losses: Sequence[float], window: int, confidence: float) -> float | None:
    """Upper confidence bound of the relative improvement: the true one lies above it in 1 - `confidence` of windows.

    The noise of single losses is what is left when each half's mean and one slope, common to both, are taken out, so
    that a steady fall does not count as noise; Student's t with window - 3 degrees of freedom. Noise is taken to be
    independent from step to step: windows come in random order. In the runs that were looked at, its autocorrelation
    was within 0.03 of zero; `experiments.plateau_simulation` prints it for any run.

    Args:
        losses: training losses in nats, oldest first.
        window: how many of the last losses count; two equal halves of at least 2.
        confidence: one-sided; 0.5 gives the improvement itself.

    Returns:
        The bound in the units of `relative_improvement`, or None with fewer than `window` losses.

    Raises:
        ValueError: if `window` is below 4, which leaves no noise to see.
    """
    if window < 4:
        raise ValueError(f"a window of {window} losses leaves nothing to tell noise by; take 4 or more")
    improvement = relative_improvement(losses, window)
    if improvement is None:
        return None
    half = window // 2
    halves = np.asarray(losses[-2 * half :], float).reshape(2, half)
    means = halves.mean(axis=1, keepdims=True)
    if not means[0]:
        return improvement
    time = np.arange(half) - (half - 1) / 2
    slope = ((halves - means) @ time).sum() / (2 * time @ time)
    freedom = 2 * half - 3
    variance = np.sum((halves - means - slope * time) ** 2) / freedom
    ratio = means[1, 0] / means[0, 0]
    error = np.sqrt(variance / half * (1 + ratio**2)) / abs(means[0, 0])
    return float(improvement + stdtrit(freedom, confidence) * error)


def adaptive_cutoff(
    epoch: int,
    current_cutoff: int,
    loss_history: Sequence[float],
    freq_bins: int,
    *,
    ladder: Sequence[int] = (128, 256, 512),
    min_epoch_before_raise: int = 2,
    plateau_window: int = 50,
    plateau_threshold: float = 0.005,
    plateau_confidence: float | None = None,
) -> tuple[int, bool]:
    """The cutoff after one check of the plateau rule, and whether it was raised; one rung at a time, never down.

    Args:
        epoch: epoch that is about to start or under way, from 0.
        current_cutoff: bins.
        loss_history: losses at the current cutoff, oldest first.
        freq_bins: the last rung, above all of `ladder`.
        ladder: the other rungs in bins; those from `freq_bins` on are ignored.
        min_epoch_before_raise: no raise before this many whole epochs are done.
        plateau_window: losses looked at; fewer give no decision.
        plateau_threshold: a relative improvement below it is a plateau.
        plateau_confidence: None compares the improvement as seen, a number its upper bound of that confidence.
    """
    rung = next_rung((*(r for r in ladder if r < freq_bins), freq_bins), current_cutoff)
    if plateau_confidence is None:
        improvement = relative_improvement(loss_history, plateau_window)
    else:
        improvement = improvement_bound(loss_history, plateau_window, plateau_confidence)
    if rung is None or improvement is None or epoch < min_epoch_before_raise or improvement >= plateau_threshold:
        return current_cutoff, False
    return rung, True
