"""The ladder of cutoffs in bins, the documents' table by epoch, and where a run starts on it."""

from collections.abc import Sequence

from fftlm_jax.config.cutoff import coefficients_passed, cutoff_in_bins

# (first epoch, cutoff): epochs 0-1 at 128, then 256, 512 from epoch 5, everything from epoch 10.
DOCUMENT_TABLE: tuple[tuple[int, int | str], ...] = ((0, 128), (2, 256), (5, 512), (10, "full"))


def resolve_ladder(ladder: Sequence[int | float | str], seq_len: int) -> tuple[int, ...]:
    """The rungs of a config's ladder in bins of a window of `seq_len` bytes."""
    return tuple(cutoff_in_bins(rung, seq_len) for rung in ladder)


def next_rung(ladder: Sequence[int], cutoff: int) -> int | None:
    """The lowest rung above `cutoff` (bins), or None at the top."""
    return next((rung for rung in ladder if rung > cutoff), None)


def curriculum_cutoff(
    epoch: int, freq_bins: int, *, table: Sequence[tuple[int, int | float | str]] = DOCUMENT_TABLE
) -> int:
    """Cutoff in bins that a table of (first epoch, cutoff) rows gives for an epoch; its first row before that.

    Cutoffs beyond `freq_bins` mean the full band, so that the documents' table serves shorter windows too.
    """
    cutoff = table[0][1]
    for first_epoch, value in table:
        if epoch >= first_epoch:
            cutoff = value
    if isinstance(cutoff, int) and cutoff >= freq_bins:
        return freq_bins
    return cutoff_in_bins(cutoff, 2 * (freq_bins - 1))


def starting_cutoff(
    initial: int,
    ladder: Sequence[int],
    freq_bins: int,
    *,
    epoch: int | None = None,
    coefficients_in_use: int = 0,
    kernel_len: int = 0,
) -> int:
    """The cutoff that a run starts at, never below what its weights already use ("never regress").

    Args:
        initial: the config's initial cutoff, in bins.
        ladder: rungs in bins.
        freq_bins: bins of a window.
        epoch: age of weights that come without controller state; the documents' table then gives a lower bound.
            None for weights that were just initialised.
        coefficients_in_use: cosine coefficients up to and including the last non-zero one.
        kernel_len: taps of a kernel, needed with `coefficients_in_use`.

    Returns:
        The largest of `initial`, the table's cutoff and the smallest rung that covers all non-zero coefficients.
    """
    candidates = [initial]
    if epoch is not None:
        candidates.append(curriculum_cutoff(epoch, freq_bins))
    if coefficients_in_use:
        covering = (rung for rung in ladder if coefficients_passed(rung, freq_bins, kernel_len) >= coefficients_in_use)
        candidates.append(next(covering, freq_bins))
    return max(candidates)
