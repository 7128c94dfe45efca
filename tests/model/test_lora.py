"""Adapters: nothing changes at first, only b moves in the first step, the base never does, merging is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.model.lora import LoRA, init_adapters, merge, target_paths, unmerge
from fftlm_jax.optim import scale_by_given_learning_rate
from fftlm_jax.raft.fine_tuning import Rows, make_fine_tune_step, rows_of
from fftlm_jax.spectral import LowPass
from fftlm_jax.training.step import fresh_state
from tests.model.lively import graph_and_params
from tests.tiny import tiny

ALL = ("w_in", "w_gate", "w_out", "w_up", "w_down")
LORA = LoRA(rank=3, alpha=6.0, dropout=0.0, targets=ALL)
MODEL = tiny(objective__name="next_byte", model__n_layers=2).model
GRAPH, PARAMS = graph_and_params(MODEL)
LOW_PASS = LowPass(freq_bins(MODEL.seq_len), freq_bins(MODEL.seq_len))
ROWS = rows_of([(b"12+07=", b"019\n"), (b"9>", b"9\n")], 12)
TX = optax.chain(optax.scale_by_adam(), scale_by_given_learning_rate())

jitted_merge = jax.jit(merge, static_argnums=2)


@jax.jit
def _logits(params):
    model = nnx.merge(GRAPH, params)
    return model.head.next_byte(model(ROWS.bytes_NW, LOW_PASS))


def logits(params):
    return np.asarray(_logits(params))


@functools.cache
def fresh_adapters(lora=LORA):
    return jax.device_get(jax.jit(lambda: init_adapters(PARAMS, lora, 0))())


def random_adapters(seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.1 * rng.normal(size=x.shape)).astype(x.dtype), fresh_adapters())


@functools.cache
def jitted_step(lora):
    return make_fine_tune_step(GRAPH, LOW_PASS, TX, lora=lora).run


@functools.cache
def first_optimizer_state():
    return jax.device_get(jax.jit(TX.init)(fresh_adapters()))


@functools.cache
def base():
    """The weights on the device, where a step could overwrite them."""
    return jax.tree.map(jnp.asarray, PARAMS)


def train(lora, steps):
    state = jax.tree.map(jnp.array, fresh_state(fresh_adapters(), first_optimizer_state(), None))
    rows = Rows(*(x[None] for x in ROWS))
    for _ in range(steps):
        state, metrics = jitted_step(lora)(base(), state, rows, np.float32(1e-2), jax.random.key(0))
    return jax.device_get(state.params), metrics


def test_fresh_adapters_change_nothing_to_the_last_bit():
    merged = jitted_merge(PARAMS, fresh_adapters(), LORA)
    assert jax.tree.all(jax.tree.map(np.array_equal, merged, PARAMS))
    np.testing.assert_array_equal(logits(merged), logits(PARAMS))


def test_the_first_step_moves_b_alone_and_the_second_moves_a():
    start = fresh_adapters()
    first, _ = train(LORA, 1)
    second, _ = train(LORA, 2)
    for path, pair in start.items():
        np.testing.assert_array_equal(first[path]["a"], pair["a"])
        assert np.any(first[path]["b"] != 0), path
        assert np.any(second[path]["a"] != pair["a"]), path


def test_the_base_is_never_touched():
    train(LORA, 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, base(), PARAMS))


def test_merging_is_the_low_rank_product_scaled_by_alpha_over_r():
    adapters = random_adapters()
    merged = jax.device_get(jitted_merge(PARAMS, adapters, LORA))
    for path, pair in adapters.items():
        names = path.split("/")
        old, new = PARAMS, merged
        for name in names:
            old, new = old[name], new[name]
        by_hand = np.stack([a @ b for a, b in zip(pair["a"], pair["b"])]) * 2.0
        np.testing.assert_allclose(new - old, by_hand, atol=1e-6)
    np.testing.assert_array_equal(merged["embed"]["embedding"], PARAMS["embed"]["embedding"])
    assert np.max(np.abs(logits(merged) - logits(PARAMS))) > 1e-3


def test_unmerging_gives_the_weights_and_the_logits_back():
    adapters = random_adapters()
    back = jax.jit(unmerge, static_argnums=2)(jitted_merge(PARAMS, adapters, LORA), adapters, LORA)
    np.testing.assert_allclose(logits(back), logits(PARAMS), atol=1e-5)


def test_the_gradient_scales_with_alpha_over_r():
    norms = [train(LoRA(3, alpha, 0.0, ALL), 1)[1].grad_norm for alpha in (3.0, 6.0)]
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-4)


def test_dropout_hides_inputs_and_keeps_the_mean():
    lora = LoRA(3, 6.0, 0.5, ALL)
    adapters = random_adapters()
    path = "blocks/mlp/w_up/kernel"

    def delta(key):
        merged = jitted_merge(PARAMS, adapters, lora, key)
        return np.asarray(merged["blocks"]["mlp"]["w_up"]["kernel"]) - PARAMS["blocks"]["mlp"]["w_up"]["kernel"]

    whole = delta(None)
    one = delta(jax.random.key(0))
    hidden = np.all(np.abs(one) < 1e-7, axis=-1)
    assert 0 < hidden.sum() < hidden.size
    np.testing.assert_allclose(one[~hidden], 2 * whole[~hidden], atol=1e-6)
    assert adapters[path]["a"].shape[:-1] == hidden.shape


def test_adapters_of_some_targets_are_those_of_all():
    some, every = fresh_adapters(LoRA(3, 6.0, 0.0, ("w_out",))), fresh_adapters()
    assert list(some) == ["blocks/mixer/w_out/kernel"]
    np.testing.assert_array_equal(some["blocks/mixer/w_out/kernel"]["a"], every["blocks/mixer/w_out/kernel"]["a"])


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match="'w_q' is no matrix of this model; it has head, w_down"):
        target_paths(PARAMS, ("w_in", "w_q"))
