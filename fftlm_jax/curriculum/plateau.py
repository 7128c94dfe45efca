"""The plateau rule: the cutoff is raised when the loss stops falling.

A larger threshold finds plateaus *sooner*: it is the improvement that must be exceeded to stay. The source documents
advise the opposite of their own formula. Cutoffs rise too fast -> smaller threshold or longer window.
"""

from collections.abc import Sequence

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
    """
    rung = next_rung((*(r for r in ladder if r < freq_bins), freq_bins), current_cutoff)
    improvement = relative_improvement(loss_history, plateau_window)
    if rung is None or improvement is None or epoch < min_epoch_before_raise or improvement >= plateau_threshold:
        return current_cutoff, False
    return rung, True
