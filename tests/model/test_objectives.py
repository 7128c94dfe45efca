"""What is scored: every byte but the first chunk's exactly once, against the right target."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.data import evaluation_batches
from fftlm_jax.model import build, init_params, objective_value, score
from fftlm_jax.spectral import no_filter
from tests.tiny import tiny

CONFIG = tiny(model__n_layers=2)
T, C = CONFIG.model.seq_len, CONFIG.model.chunk
B = 6
GRAPH, _ = build(CONFIG.model)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG.model, 0)


@functools.partial(jax.jit, static_argnames=("dropout", "last_only"))
def _score(params, windows_BW, *, dropout=0.0, **options):
    graph = GRAPH if dropout == 0 else build(tiny(model__n_layers=2, model__dropout=dropout).model)[0]
    return score(graph, params, windows_BW, no_filter(T), chunk=C, with_chunk=True, **options)


def score_windows(params, windows, **options):
    """Scores of B windows, as NumPy arrays; compiled once for every set of options."""
    assert windows.shape == (B, T + C)
    return jax.device_get(_score(params, windows, **options))


def random_windows():
    return np.random.default_rng(0).integers(0, 256, (B, T + C)).astype(np.uint8)


@pytest.mark.parametrize("length", (T + C, 3 * T + 5, 1000, 4 * T + 1, 2 * T))
def test_over_a_text_every_byte_is_scored_exactly_once(params, length):
    """Counted by their weights; the next tests look at where each sits."""
    data = np.zeros(length, np.uint8)
    batches = list(evaluation_batches(data, T, C, batch_size=B))
    scored = [score_windows(params, b.windows, valid_B=np.asarray(b.valid, np.int32)) for b in batches]
    assert sum(float(s.next_byte_weight_BT.sum()) for s in scored) == length - 1
    assert sum(float(s.chunk_weight_BNC.sum()) for s in scored) == length - C


def test_padding_has_no_weight_and_all_else_has(params):
    """T inputs and C bytes after them, of which the first `valid` are data: position t scores byte t + 1."""
    valid = np.array([1, 2, T, T + 1, T + 3, T + C], np.int32)
    s = score_windows(params, np.zeros((B, T + C), np.uint8), valid_B=valid)
    for row, count in enumerate(valid):
        np.testing.assert_array_equal(s.next_byte_weight_BT[row], [float(t + 1 < count) for t in range(T)])
        expected = [[float(C + n * C + c < count) for c in range(C)] for n in range(T // C)]
        np.testing.assert_array_equal(s.chunk_weight_BNC[row], expected)


def test_losses_equal_a_numpy_cross_entropy(params):
    windows = random_windows()

    @jax.jit
    def logits_of(params, bytes_BT):
        model = nnx.merge(GRAPH, params)
        return model.head.chunk(model(bytes_BT, no_filter(T)))

    logits = np.asarray(logits_of(params, windows[:, :T]), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    s = score_windows(params, windows)
    for b in range(B):
        for t in range(T):
            expected = log_z[b, t, 0] - logits[b, t, 0, windows[b, t + 1]]
            assert s.next_byte_BT[b, t] == pytest.approx(expected, abs=1e-4)
        for n in range(T // C):
            boundary = (n + 1) * C - 1
            for c in range(C):
                expected = log_z[b, boundary, c] - logits[b, boundary, c, windows[b, boundary + 1 + c]]
                assert s.chunk_BNC[b, n, c] == pytest.approx(expected, abs=1e-4)
    last = score_windows(params, windows, last_only=True)
    np.testing.assert_allclose(last.next_byte_BT, s.next_byte_BT[:, -1:], atol=1e-5)
    np.testing.assert_allclose(last.chunk_BNC, s.chunk_BNC[:, -1:], atol=1e-5)


def test_a_fresh_model_is_near_eight_bits_per_byte(params):
    s = score_windows(params, random_windows())
    assert float(s.next_byte_BT.mean()) / math.log(2) == pytest.approx(8.0, abs=0.1)


def test_dropout_is_seeded_and_off_in_evaluation(params):
    run = lambda key, dropout=0.5: score_windows(params, random_windows(), dropout=dropout, dropout_key=key)[0]
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert not np.allclose(run(jax.random.key(1)), run(jax.random.key(2)))
    np.testing.assert_allclose(run(None), run(None, dropout=0.0), atol=1e-5)
    assert not np.allclose(run(None), run(jax.random.key(1)))


def test_layers_are_initialised_one_by_one(params):
    """Right fan-in for every layer, and no two layers alike."""
    for name, fan_in in (("w_up", 16), ("w_down", 32)):
        kernel = np.asarray(params["blocks"]["mlp"][name]["kernel"])
        residual = (2 * CONFIG.model.n_layers) ** -0.5 if name == "w_down" else 1.0
        assert kernel.std() == pytest.approx(residual * fan_in**-0.5, rel=0.1)
        assert not np.allclose(kernel[0], kernel[1])


def test_the_weight_of_the_next_byte_counts():
    weighted, alone = (tiny(objective__name=name, objective__next_byte_weight=0.25) for name in ("chunk", "next_byte"))
    assert objective_value(weighted.objective, next_byte=2.0, chunk=3.0) == 3.5
    assert objective_value(alone.objective, next_byte=2.0, chunk=3.0) == 2.0
