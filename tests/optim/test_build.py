"""Routing by path covers every parameter, and the assembled optimizer is AdamW with decay on matrices only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.model import init_params
from fftlm_jax.optim import DECAYED_GROUPS, build_optimizer, label_params, sawtooth_schedule, stages_in_steps
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
    ours = build_optimizer(config.optim, STAGES, 1e-2)
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
    tx = build_optimizer(config.optim, STAGES, 1e-2)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for group, update in zip(jax.tree.leaves(label_params(params)), jax.tree.leaves(updates), strict=True):
        assert bool(jnp.any(update != 0)) == (group in DECAYED_GROUPS), group
