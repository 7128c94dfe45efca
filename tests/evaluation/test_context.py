"""Bits per byte by length of context: the same bytes, each scored from its last c bytes and nothing else."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.checkpoints.saved_run import SavedRun
from fftlm_jax.evaluation.context import bits_by_context, context_lengths, longest_context, spaced_places, summary
from fftlm_jax.spectral import LowPass, no_filter
from tests.model.lively import graph_and_params
from tests.tiny import tiny

TEXT = np.random.default_rng(0).integers(0, 256, 300).astype(np.uint8)


def saved(low_pass=None, **overrides):
    config = tiny(model__n_layers=1, **overrides)
    _, params = graph_and_params(config.model)
    return SavedRun(config, 1, params, low_pass or no_filter(config.model.seq_len), "")


@pytest.mark.parametrize(
    "case,overrides,lengths",
    (
        ("two layers of 12 taps see 23 bytes", {}, [1, 2, 4, 8, 16, 23]),
        ("no more than the window", {"model__kernel_len": 100}, [1, 2, 4, 8, 16, 32]),
        ("attention sees the window", {"model__mixer": "attention", "curriculum__rule": "none"}, [1, 2, 4, 8, 16, 32]),
        ("a memory too", {"model__memory": "polar", "model__memory_piece": 4}, [1, 2, 4, 8, 16, 32]),
        ("one tap sees one byte", {"model__kernel_len": 1}, [1]),
    ),
)
def test_lengths_double_up_to_all_that_is_seen(case, overrides, lengths):
    assert context_lengths(tiny(model__n_layers=2, **overrides).model) == lengths


@pytest.mark.parametrize("memory", ("none", "polar"))
def test_each_byte_is_scored_from_its_last_bytes_alone(memory):
    """Against windows of that length, through the model itself."""
    run = saved(model__memory=memory, model__memory_piece=4, eval__batch_size=1)
    lengths = [1, 4, longest_context(run.config.model)]
    places = spaced_places(TEXT.size, lengths[-1], 41)
    looked_at = [0, 17, 40]
    windows = [np.stack([TEXT[place - length : place] for place in places[looked_at]]) for length in lengths]

    @jax.jit
    def last_logits(params, windows):
        model = nnx.merge(graph_and_params(run.config.model)[0], params)
        return [model.head.next_byte(model(window_BT, run.low_pass)[:, -1]) for window_BT in windows]

    logits_CBV = np.stack(last_logits(run.params, windows)).astype(np.float64)
    log_p_CBV = logits_CBV - np.log(np.exp(logits_CBV).sum(axis=-1, keepdims=True))
    expected = -log_p_CBV[:, range(3), TEXT[places[looked_at]]] / math.log(2)
    found = bits_by_context(run, TEXT, places, lengths)
    assert found.shape == (3, 41)
    np.testing.assert_allclose(found[:, looked_at], expected, atol=2e-4)
    assert (np.ptp(expected, axis=0) > 1e-2).all(), "context matters here"


def test_beyond_the_receptive_field_nothing_changes():
    run = saved()
    reach = longest_context(run.config.model)
    shorter, whole, more = bits_by_context(run, TEXT, spaced_places(TEXT.size, 64, 20), [reach - 1, reach, reach + 9])
    np.testing.assert_allclose(more, whole, atol=1e-3)
    assert np.abs(shorter - whole).max() > 1e-3


@pytest.mark.parametrize("size,margin,count", ((300, 23, 41), (300, 23, 277), (300, 23, 5000), (24, 23, 9)))
def test_places_are_distinct_evenly_spaced_and_have_their_context(size, margin, count):
    places = spaced_places(size, margin, count)
    assert len(places) == min(count, size - margin)
    assert places[0] == margin and places[-1] < size
    gaps = np.diff(places)
    assert (gaps >= 1).all() and (gaps.max(initial=1) - gaps.min(initial=gaps.max(initial=1))) <= 1


def test_the_error_is_that_of_the_difference():
    """Bytes that differ much in themselves, but by the same amount for want of context."""
    whole = np.array([0.0, 10.0, 20.0, 30.0])
    rows = summary(np.stack([whole + 1, whole + np.array([0, 2, 0, 2]), whole]), [1, 2, 4])
    assert rows[0] == {"context": 1, "bpb": 16.0, "more": 1.0, "standard_error": 0.0}
    assert rows[1]["more"] == 1.0 and rows[1]["standard_error"] == pytest.approx(np.sqrt(4 / 3 / 4), abs=1e-4)
    assert rows[2]["bpb"] == 15.0 and rows[2]["more"] == 0.0
    assert summary(whole[None, :1], [1])[0]["standard_error"] is None


def test_the_signal_method_has_no_shorter_windows():
    with pytest.raises(ValueError, match="whole windows"):
        bits_by_context(saved(LowPass(4, 17, "signal")), TEXT, np.array([40]), [1])
