"""Units of cutoffs: bins, fractions of Nyquist, "full"."""

import pytest

from fftlm_jax.config.cutoff import coefficients_passed, cutoff_in_bins, freq_bins, nyquist_fraction


@pytest.mark.parametrize(
    "case,cutoff,seq_len,expected",
    (
        ("bins stay bins", 128, 1024, 128),
        ("full is every bin", "full", 1024, 513),
        ("a quarter of Nyquist", 0.25, 1024, 128),
        ("the same quarter of a shorter window", 0.25, 256, 32),
        ("all of Nyquist is one below full", 1.0, 1024, 512),
        ("a tiny fraction passes one bin", 1e-6, 1024, 1),
        ("the last bin", 513, 1024, 513),
        ("an odd window", "full", 7, 4),
    ),
)
def test_cutoff_in_bins(case, cutoff, seq_len, expected):
    assert cutoff_in_bins(cutoff, seq_len) == expected


@pytest.mark.parametrize("cutoff", (0, -1, 514, 0.0, 1.5, -0.1, True, "ful", None, float("nan")))
def test_bad_cutoffs_are_refused(cutoff):
    with pytest.raises(ValueError):
        cutoff_in_bins(cutoff, 1024)


@pytest.mark.parametrize(
    "cutoff,fraction,coefficients", ((128, 0.25, 32), (256, 0.5, 64), (512, 1.0, 128), (513, 1.0, 128), (1, 1 / 512, 1))
)
def test_fractions_and_coefficients(cutoff, fraction, coefficients):
    bins = freq_bins(1024)
    assert nyquist_fraction(cutoff, bins) == pytest.approx(fraction)
    assert coefficients_passed(cutoff, bins, 128) == coefficients
