"""Cutoffs: what they count, how a config writes them, and how many kernel coefficients they let pass.

A cutoff is counted in rfft bins of a training window: `freq_bins = seq_len // 2 + 1`, and bin c lies at the
fraction `c / (seq_len / 2)` of the Nyquist frequency. Pure Python, so that the validator, the controller on the host
and the jitted step share one definition.
"""

from fftlm_jax.runtime.untrusted import shown


def freq_bins(seq_len: int) -> int:
    """Number of rfft bins of a window of `seq_len` bytes; as a cutoff: no filter."""
    return seq_len // 2 + 1


def nyquist_fraction(cutoff: int, bins: int) -> float:
    """Band edge of `cutoff` as a fraction of Nyquist; 1.0 from the last bin on."""
    return min(1.0, cutoff / (bins - 1)) if bins > 1 else 1.0


def coefficients_passed(cutoff: int, bins: int, kernel_len: int) -> int:
    """How many of the `kernel_len` cosine coefficients of a kernel a cutoff lets pass (at least one).

    Coefficient m of a K-tap kernel is the frequency m/K of Nyquist, so `cutoff / (bins - 1)` of them pass.
    """
    return min(kernel_len, max(1, round(kernel_len * nyquist_fraction(cutoff, bins))))


def cutoff_passing(coefficients: int, bins: int, kernel_len: int) -> int:
    """The lowest cutoff in bins that lets so many cosine coefficients pass."""
    return next(c for c in range(1, bins + 1) if coefficients_passed(c, bins, kernel_len) >= coefficients)


def cutoff_in_bins(cutoff: int | float | str, seq_len: int) -> int:
    """Reads a cutoff as configs write it.

    Args:
        cutoff: bins (int), a fraction of Nyquist in (0, 1] (float), or `"full"` for no filter.
        seq_len: bytes of a training window.

    Returns:
        Bins, 1..freq_bins(seq_len). The fraction 1.0 is the Nyquist bin, one below `"full"`.

    Raises:
        ValueError: one sentence, for anything else.
    """
    bins = freq_bins(seq_len)
    if cutoff == "full":
        return bins
    if isinstance(cutoff, bool) or not isinstance(cutoff, (int, float)):
        raise ValueError(
            f"{shown(cutoff)} is no cutoff: write bins (an int), a fraction of Nyquist (a float) or 'full'"
        )
    if isinstance(cutoff, float):
        if not 0.0 < cutoff <= 1.0:
            raise ValueError(f"{cutoff} is no fraction of Nyquist: it must lie in (0, 1]; bins are written as an int")
        return max(1, round(cutoff * (seq_len / 2)))
    if not 1 <= cutoff <= bins:
        raise ValueError(f"{cutoff} bins lie outside 1..{bins}, the bins of a window of {seq_len} bytes")
    return cutoff
