"""Routing by path covers every parameter, and the assembled optimizer is AdamW with decay on matrices only."""

import functools

import jax
import numpy as np
import optax
import pytest

from fftlm_jax.model import build
from fftlm_jax.model.parameters import DECAYED_GROUPS, MUON_GROUPS, label_params
from fftlm_jax.optim import (
    learning_rate_in_force,
    momentum_schedule,
    radial_statistics,
    sawtooth_schedule,
    scale_by_muon,
    scale_by_sawtooth,
    scale_by_scheduled_learning_rate,
    stages_in_steps,
)
from fftlm_jax.training.optimizer import build_optimizer
from tests.model.lively import graph_and_params
from tests.tiny import tiny

STAGES = stages_in_steps((("rest", 1.0, 0.1),), 10, 2)


def test_every_parameter_has_a_group():
    for projections in (True, False):
        labels = label_params(build(tiny(model__n_layers=2, model__projections=projections).model)[1])
        assert all(jax.tree.leaves(labels))
    assert labels["blocks"]["mixer"]["spectrum"] == "convolution" and labels["embed"]["embedding"] == "embedding"


def test_orphans_are_named():
    with pytest.raises(ValueError, match="blocks/mixer/w_new/bias"):
        label_params({"blocks": {"mixer": {"w_new": {"bias": np.ones(2)}}}})


def test_it_is_adamw_with_the_sawtooth():
    """Equal to optax.adamw with the same schedule and mask, over several steps and with clipping."""
    config = tiny(model__n_layers=2, optim__weight_decay=0.1, optim__clip=0.5)
    _, params = graph_and_params(config.model)
    mask = jax.tree.map(lambda group: group in DECAYED_GROUPS, label_params(params))
    ours = build_optimizer(config.optim, scale_by_sawtooth(STAGES, 1e-2), 20)
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(sawtooth_schedule(STAGES, 1e-2), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask),
    )
    trees = []
    for tx in (ours, theirs):
        update, state, tree = jax.jit(tx.update), jax.jit(tx.init)(params), params
        for step in range(4):
            grads = jax.tree.map(lambda p: np.sin(p * 100 + step), params)
            updates, state = jax.device_get(update(grads, state, tree))
            tree = jax.tree.map(np.add, tree, updates)
        trees.append(tree)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *trees)


def one_update(tx, grads, params):
    return jax.device_get(jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params))(grads, params))


def test_zero_gradients_decay_matrices_only():
    config = tiny(optim__weight_decay=0.1)
    _, params = graph_and_params(config.model)
    tx = build_optimizer(config.optim, scale_by_sawtooth(STAGES, 1e-2), 20)
    updates, _ = one_update(tx, jax.tree.map(np.zeros_like, params), params)
    for group, update in zip(jax.tree.leaves(label_params(params)), jax.tree.leaves(updates), strict=True):
        assert np.any(update != 0) == (group in DECAYED_GROUPS), group


def muon_config(**overrides):
    return tiny(model__n_layers=2, optim__name="muon", optim__weight_decay=0.1, **overrides)


@functools.cache
def updates_of(config, steps=3):
    """Updates of every step for fixed gradients, with a learning rate of 0.1."""
    _, params = graph_and_params(config.model)
    tx = build_optimizer(config.optim, scale_by_scheduled_learning_rate(lambda _: 0.1), 10)
    update, state, found = jax.jit(tx.update), jax.jit(tx.init)(params), []
    for step in range(steps):
        grads = jax.tree.map(lambda p: np.float32(1e-3) * np.cos(p * 100 + step), params)
        updates, state = update(grads, state, params)
        found.append(jax.device_get(updates))
    return params, found, state


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    params, updates, _ = updates_of(muon_config(optim__adam_scale=0.5, optim__cautious=False), steps=1)
    groups = label_params(params)
    adamw = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        optax.add_decayed_weights(0.1, mask=jax.tree.map(lambda g: g == "head", groups)),
        optax.scale(-0.1 * 0.5),
    )
    muon = optax.chain(scale_by_muon(0.95), optax.add_decayed_weights(0.1), optax.scale(-0.1))
    grads = jax.tree.map(lambda p: np.float32(1e-3) * np.cos(p * 100), params)
    expected_adamw, _ = one_update(adamw, grads, params)
    expected_muon, _ = one_update(muon, {"mlp": grads["blocks"]["mlp"]}, {"mlp": params["blocks"]["mlp"]})
    jax.tree.map(
        lambda group, ours, theirs: group in MUON_GROUPS or np.testing.assert_allclose(ours, theirs, atol=1e-6),
        groups,
        updates[0],
        expected_adamw,
    )
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6),
        updates[0]["blocks"]["mlp"],
        expected_muon["mlp"],
    )


def test_alpha_zero_is_muon_and_alpha_by_group_touches_its_group_only():
    _, muon, _ = updates_of(muon_config())
    _, mlp, _ = updates_of(muon_config(optim__spectral_lr=(("mlp", 0.5),), optim__spectral_normalize="frobenius"))
    for a, b in zip(muon, mlp, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a["blocks"]["mixer"], b["blocks"]["mixer"])
        assert not np.allclose(a["blocks"]["mlp"]["w_up"]["kernel"], b["blocks"]["mlp"]["w_up"]["kernel"])


def test_a_span_switches_alpha_on_and_off():
    """Fractions 0.1 to 0.2 of ten steps: the second step only."""
    _, muon, _ = updates_of(muon_config())
    spectral = {"optim__spectral_lr": 0.5, "optim__spectral_normalize": "frobenius"}
    _, span, _ = updates_of(muon_config(**spectral, optim__spectral_span=(0.1, 0.2)))
    same = [
        np.array_equal(a["blocks"]["mlp"]["w_up"]["kernel"], b["blocks"]["mlp"]["w_up"]["kernel"])
        for a, b in zip(muon, span, strict=True)
    ]
    assert same == [True, False, True]


def test_the_state_tells_learning_rate_and_radial_statistics():
    params, _, state = updates_of(muon_config(optim__spectral_lr=0.1))
    assert float(learning_rate_in_force(state)) == pytest.approx(0.1)
    stats = radial_statistics(state)
    assert set(stats) == {
        *(f"blocks/mixer/w_{name}/kernel" for name in ("in", "gate", "out")),
        *(f"blocks/mlp/w_{name}/kernel" for name in ("up", "down")),
    }
    weight = np.asarray(params["blocks"]["mlp"]["w_up"]["kernel"])
    norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    np.testing.assert_allclose(stats["blocks/mlp/w_up/kernel"].weight_norm, norms, rtol=1e-5)


def test_a_frozen_backbone_leaves_muon_without_matrices():
    config = muon_config()
    head = {"head": graph_and_params(config.model)[1]["head"]}
    tx = build_optimizer(config.optim, scale_by_sawtooth(STAGES, 1e-2), 20)
    updates, state = one_update(tx, head, head)
    assert np.abs(updates["head"]["kernel"]).max() > 0 and radial_statistics(state) == {}


def test_learning_rates_are_read_back_and_several_are_refused():
    tx = scale_by_scheduled_learning_rate(momentum_schedule(1600, warmup=5))
    state, update = jax.jit(tx.init)({}), jax.jit(lambda state: tx.update({}, state, restart=True)[1])
    for step in range(4):
        assert float(learning_rate_in_force(state)) == pytest.approx(0.85 + 0.02 * max(step - 1, 0))
        state = update(state)
    with pytest.raises(ValueError, match="2 learning rates"):
        learning_rate_in_force(jax.eval_shape(optax.chain(tx, scale_by_sawtooth(STAGES, 1.0)).init, {}))
