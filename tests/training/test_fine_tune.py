"""Fine-tuning: what counts is scored and nothing else, every row is seen once an epoch, padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.cutoff import freq_bins
from fftlm_jax.model import build, init_params
from fftlm_jax.optim import scale_by_given_learning_rate
from fftlm_jax.spectral import LowPass
from fftlm_jax.training.fine_tune import (
    FineTuneState,
    batches,
    make_answer_loss,
    make_fine_tune_step,
    rows_of,
    steps_per_epoch,
)
from tests.tiny import tiny

MODEL = tiny(objective__name="next_byte").model
PARAMS, GRAPH = init_params(MODEL, 0), build(MODEL)[0]
KEY = jax.random.key(0)
LOW_PASS = LowPass(freq_bins(MODEL.seq_len), freq_bins(MODEL.seq_len))
PAIRS = [(b"12+07=", b"019\n"), (b"9>", b"9\n"), (b"31>", b"13\n")]


def test_rows_mark_the_answers_alone():
    rows = rows_of(PAIRS, 12)
    assert bytes(rows.bytes_NW[1]) == b"9>9\n" + bytes(8)
    np.testing.assert_array_equal(rows.weight_NW[1], [0, 0, 1, 1] + [0] * 8)
    with pytest.raises(ValueError, match="more than a row"):
        rows_of(PAIRS, 9)


def test_the_loss_is_that_of_the_answer_bytes():
    from flax import nnx

    model = nnx.merge(GRAPH, PARAMS)
    total = count = 0
    for question, answer in PAIRS:  # One text at a time, without padding.
        text = np.frombuffer(question + answer, np.uint8)[None]
        log_p = jax.nn.log_softmax(model.head.next_byte(model(jnp.asarray(text[:, :-1]), LOW_PASS)))[0]
        for place in range(len(question), len(question) + len(answer)):
            total, count = total - float(log_p[place - 1, text[0, place]]), count + 1
    loss = make_answer_loss(GRAPH, LOW_PASS, batch_size=2)(PARAMS, rows_of(PAIRS, 12))
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_every_row_once_an_epoch_in_changing_order():
    rows = rows_of([(b"%02d=" % i, b"x\n") for i in range(11)], 6)
    found = list(batches(rows, 4, 3, (0,)))
    assert len(found) == 3 * steps_per_epoch(11, 4) == 9
    orders = []
    for epoch in range(3):
        part = found[3 * epoch : 3 * epoch + 3]
        texts = np.concatenate([b.bytes_NW for b in part])
        weights = np.concatenate([b.weight_NW for b in part])
        assert weights.sum() == 22 and not weights[11:].any()
        orders.append([bytes(text) for text in texts[:11]])
        assert sorted(orders[-1]) == sorted(bytes(text) for text in rows.bytes_NW)
    assert orders[0] != orders[1]
    again = list(batches(rows, 4, 3, (0,)))
    assert all(np.array_equal(a.bytes_NW, b.bytes_NW) for a, b in zip(found, again))


def _one_step(rows, lr=1e-2):
    tx = optax.chain(optax.scale_by_adam(), scale_by_given_learning_rate())
    step = make_fine_tune_step(GRAPH, LOW_PASS, tx, lora=None)
    state = FineTuneState(jax.tree.map(jnp.array, PARAMS), tx.init(PARAMS), jnp.zeros((), jnp.int32))
    return step({}, state, rows, np.float32(lr), KEY)


def test_rows_without_weight_change_nothing():
    rows = rows_of(PAIRS, 12)
    padded = type(rows)(*(np.pad(array, ((0, 2), (0, 0))) for array in rows))
    (a, m), (b, n) = _one_step(rows), _one_step(padded)
    assert m.loss == pytest.approx(float(n.loss), abs=1e-6)
    for x, y in zip(jax.tree.leaves(a.trained), jax.tree.leaves(b.trained)):
        # Adam's first update is +-lr wherever the gradient is not round-off.
        assert np.mean(np.abs(x - y) > 1e-4) < 0.01


def test_the_learning_rate_is_what_it_is_given_and_compiles_nothing_anew():
    tx = optax.chain(optax.scale_by_adam(), scale_by_given_learning_rate())
    step = make_fine_tune_step(GRAPH, LOW_PASS, tx, lora=None)
    state = FineTuneState(jax.tree.map(jnp.array, PARAMS), tx.init(PARAMS), jnp.zeros((), jnp.int32))
    rows, ratios = rows_of(PAIRS, 12), []
    state, metrics = step({}, state, rows, np.float32(0.0), KEY)
    assert float(metrics.update_ratio) == 0.0
    for x, y in zip(jax.tree.leaves(state.trained), jax.tree.leaves(PARAMS)):
        np.testing.assert_array_equal(x, y)
    for lr in (1e-3, 2e-3):
        _, metrics = step({}, jax.tree.map(jnp.array, state), rows, np.float32(lr), KEY)
        ratios.append(float(metrics.update_ratio))
    assert ratios[1] == pytest.approx(2 * ratios[0], rel=1e-5)
    assert step._cache_size() == 1
