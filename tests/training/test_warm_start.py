"""Cutoffs of weights that come from runs with other windows."""

import pytest

from fftlm_jax.checkpoints.saved_run import rescaled_cutoff


@pytest.mark.parametrize(
    "case,cutoff,old_bins,new_bins,expected",
    (
        ("the same windows", 128, 513, 513, 128),
        ("full stays full in shorter windows", 513, 513, 129, 129),
        ("full stays full in longer windows", 129, 129, 513, 513),
        ("a quarter stays a quarter", 128, 513, 129, 32),
        ("rounded up, so that nothing learned is lost", 130, 513, 129, 33),
        ("the Nyquist bin is not full", 512, 513, 129, 128),
    ),
)
def test_rescaled_cutoff(case, cutoff, old_bins, new_bins, expected):
    assert rescaled_cutoff(cutoff, old_bins, new_bins) == expected
