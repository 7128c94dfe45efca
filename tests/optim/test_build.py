"""Routing by path covers every parameter, and the assembled optimizer is AdamW with decay on matrices only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.model import init_params
from fftlm_jax.optim import (
    DECAYED_GROUPS,
    MUON_GROUPS,
    build_optimizer,
    label_params,
    learning_rate_in_force,
    momentum_schedule,
    radial_statistics,
    sawtooth_schedule,
    scale_by_muon,
    scale_by_sawtooth,
    scale_by_scheduled_learning_rate,
    stages_in_steps,
)
from tests.tiny import tiny

STAGES = stages_in_steps((("rest", 1.0, 0.1),), 10, 2)


def test_every_parameter_has_a_group():
    for projections in (True, False):
        labels = label_params(init_params(tiny(model__projections=projections).model, 0))
        assert all(jax.tree.leaves(labels))
    assert labels["blocks"]["mixer"]["spectrum"] == "convolution" and labels["embed"]["embedding"] == "embedding"


def test_orphans_are_named():
    with pytest.raises(ValueError, match="blocks/mixer/w_new/bias"):
        label_params({"blocks": {"mixer": {"w_new": {"bias": jnp.ones(2)}}}})


def test_it_is_adamw_with_the_sawtooth():
    """Equal to optax.adamw with the same schedule and mask, over several steps and with clipping."""
    config = tiny(optim__weight_decay=0.1, optim__clip=0.5)
    params = init_params(config.model, 0)
    mask = jax.tree.map(lambda group: group in DECAYED_GROUPS, label_params(params))
    ours = build_optimizer(config.optim, scale_by_sawtooth(STAGES, 1e-2), 20)
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(sawtooth_schedule(STAGES, 1e-2), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask),
    )
    states, trees = [ours.init(params), theirs.init(params)], [params, params]
    for step in range(4):
        grads = jax.tree.map(lambda p: jnp.sin(p * 100 + step), params)
        for i, tx in enumerate((ours, theirs)):
            updates, states[i] = jax.jit(tx.update)(grads, states[i], trees[i])
            trees[i] = optax.apply_updates(trees[i], updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *trees)


def test_zero_gradients_decay_matrices_only():
    config = tiny(optim__weight_decay=0.1)
    params = init_params(config.model, 0)
    tx = build_optimizer(config.optim, scale_by_sawtooth(STAGES, 1e-2), 20)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for group, update in zip(jax.tree.leaves(label_params(params)), jax.tree.leaves(updates), strict=True):
        assert bool(jnp.any(update != 0)) == (group in DECAYED_GROUPS), group


def muon_config(**overrides):
    return tiny(optim__name="muon", optim__weight_decay=0.1, **overrides)


def updates_of(config, steps=3, **changes):
    """Updates of every step for fixed gradients, with a learning rate of 0.1."""
    params = init_params(config.model, 0)
    tx = build_optimizer(config.optim, scale_by_scheduled_learning_rate(lambda _: 0.1), 10)
    state, found = tx.init(params), []
    for step in range(steps):
        grads = jax.tree.map(lambda p: 1e-3 * jnp.cos(p * 100 + step), params)
        updates, state = tx.update(grads, state, params)
        found.append(updates)
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
    grads = jax.tree.map(lambda p: 1e-3 * jnp.cos(p * 100), params)
    expected_adamw, _ = adamw.update(grads, adamw.init(params), params)
    matrices = {"mlp": params["blocks"]["mlp"]}
    expected_muon, _ = muon.update({"mlp": grads["blocks"]["mlp"]}, muon.init(matrices), matrices)
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
    head = {"head": init_params(config.model, 0)["head"]}
    tx = build_optimizer(config.optim, scale_by_sawtooth(STAGES, 1e-2), 20)
    updates, state = tx.update(head, tx.init(head), head)
    assert np.abs(updates["head"]["kernel"]).max() > 0 and radial_statistics(state) == {}


def test_learning_rates_are_read_back_and_several_are_refused():
    tx = scale_by_scheduled_learning_rate(momentum_schedule(1600, warmup=5))
    state = tx.init({})
    for step in range(4):
        assert float(learning_rate_in_force(state)) == pytest.approx(0.85 + 0.02 * max(step - 1, 0))
        _, state = tx.update({}, state, restart=True)
    with pytest.raises(ValueError, match="2 learning rates"):
        learning_rate_in_force(optax.chain(tx, scale_by_sawtooth(STAGES, 1.0)).init({}))
