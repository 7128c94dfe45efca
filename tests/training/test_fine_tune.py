"""Fine-tuning: what counts is scored and nothing else, every row is seen once an epoch, padding changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.optim import scale_by_given_learning_rate
from fftlm_jax.raft.fine_tuning import (
    Rows,
    batches,
    make_answer_loss,
    make_fine_tune_step,
    rows_of,
    steps_per_epoch,
)
from fftlm_jax.spectral import LowPass
from fftlm_jax.training.step import fresh_state
from tests.model.lively import graph_and_params
from tests.tiny import tiny

MODEL = tiny(objective__name="next_byte", model__n_layers=1).model
GRAPH, PARAMS = graph_and_params(MODEL)
TX = optax.chain(optax.scale_by_adam(), scale_by_given_learning_rate())
LOW_PASS = LowPass(freq_bins(MODEL.seq_len), freq_bins(MODEL.seq_len))
PAIRS = [(b"12+07=", b"019\n"), (b"9>", b"9\n"), (b"31>", b"13\n")]


def test_rows_mark_the_answers_alone():
    rows = rows_of(PAIRS, 12)
    assert bytes(rows.bytes_NW[1]) == b"9>9\n" + bytes(8)
    np.testing.assert_array_equal(rows.weight_NW[1], [0, 0, 1, 1] + [0] * 8)
    with pytest.raises(ValueError, match="more than a row"):
        rows_of(PAIRS, 9)


def test_the_loss_is_that_of_the_answer_bytes():
    texts = [np.frombuffer(question + answer, np.uint8)[None] for question, answer in PAIRS]

    @jax.jit
    def log_probabilities(params):
        """After each byte of each text, one text at a time, without padding."""
        model = nnx.merge(GRAPH, params)
        return [jax.nn.log_softmax(model.head.next_byte(model(text[:, :-1], LOW_PASS)))[0] for text in texts]

    total = count = 0
    for (question, answer), text, log_p in zip(PAIRS, texts, jax.device_get(log_probabilities(PARAMS))):
        for place in range(len(question), len(question) + len(answer)):
            total, count = total - float(log_p[place - 1, text[0, place]]), count + 1
    assert answer_loss_of_pairs() == pytest.approx(total / count, abs=1e-5)


@functools.cache
def answer_loss_of_pairs() -> float:
    return make_answer_loss(GRAPH, LOW_PASS, batch_size=2)(PARAMS, rows_of(PAIRS, 12))


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


@functools.cache
def jitted_step():
    return make_fine_tune_step(GRAPH, LOW_PASS, TX, lora=None).run


@functools.cache
def first_optimizer_state():
    return jax.device_get(jax.jit(TX.init)(PARAMS))


def micro_batches(rows, count):
    return Rows(*(x.reshape(count, -1, x.shape[-1]) for x in rows))


def one_step(rows, lr=1e-2, state=None, count=1):
    if state is None:
        state = jax.tree.map(jnp.array, fresh_state(PARAMS, first_optimizer_state(), None))
    return jitted_step()({}, state, micro_batches(rows, count), np.float32(lr), jax.random.key(0))


def padded(content=0):
    """The pairs, and two rows without weight that hold some byte."""
    rows = rows_of(PAIRS, 12)
    padding = ((0, 2), (0, 0))
    return Rows(np.pad(rows.bytes_NW, padding, constant_values=content), np.pad(rows.weight_NW, padding))


def test_rows_without_weight_change_nothing():
    (a, m), (b, n) = (jax.device_get(one_step(padded(content))) for content in (0, 97))
    assert m.loss == pytest.approx(float(n.loss), abs=1e-6)
    assert m.loss == pytest.approx(answer_loss_of_pairs(), abs=1e-5), "which has no such rows in its first batch"
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params)):
        # Adam's first update is +-lr wherever the gradient is not round-off.
        assert np.mean(np.abs(x - y) > 1e-4) < 0.01


def test_the_learning_rate_is_what_it_is_given_and_compiles_nothing_anew():
    state, metrics = one_step(padded(), lr=0.0)
    assert float(metrics.update_ratio) == 0.0
    for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(PARAMS)):
        np.testing.assert_array_equal(x, y)
    state, ratios = jax.device_get(state), []
    for lr in (1e-3, 2e-3):
        _, metrics = one_step(padded(), lr, jax.tree.map(jnp.asarray, state))
        ratios.append(float(metrics.update_ratio))
    assert ratios[1] == pytest.approx(2 * ratios[0], rel=1e-5)
    assert jitted_step()._cache_size() == 1
