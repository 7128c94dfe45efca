"""Cautious decay: its truth table, and where it equals plain decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import add_cautious_decayed_weights
from tests.optim.matrices import normal

SIGNS = [(u, w) for u in (-1.0, 0.0, 1.0) for w in (-2.0, 0.0, 2.0)]


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize("u,w", SIGNS)
def test_truth_table(u, w, strict):
    tx = add_cautious_decayed_weights(0.1, strict=strict)
    params = {"w": jnp.array([w])}
    out, _ = tx.update({"w": jnp.array([u])}, tx.init(params), params)
    decays = u * w > 0 or (u * w == 0 and not strict)
    assert float(out["w"][0]) == pytest.approx(u + 0.1 * w * decays)


def test_equal_to_plain_decay_where_signs_agree():
    params = {"w": normal(3, 4)}
    updates = {"w": params["w"] * 0.3}
    ours, theirs = (
        tx.update(updates, tx.init(params), params)[0]["w"]
        for tx in (add_cautious_decayed_weights(0.1), optax.add_decayed_weights(0.1))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    opposed = {"w": -updates["w"]}
    tx = add_cautious_decayed_weights(0.1)
    np.testing.assert_array_equal(tx.update(opposed, tx.init(params), params)[0]["w"], opposed["w"])


def test_schedule_and_mask():
    tx = add_cautious_decayed_weights(lambda count: 0.1 * count, mask={"w": True, "b": False})
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.init(params)
    for step in range(3):
        out, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
        np.testing.assert_allclose(out["w"], 0.1 * step, rtol=1e-6)
        np.testing.assert_array_equal(out["b"], 0)


def test_it_never_turns_a_step_around():
    params, updates = {"w": normal(50)}, {"w": normal(50, seed=1)}
    tx = add_cautious_decayed_weights(10.0)
    out, _ = tx.update(updates, tx.init(params), params)
    assert bool((out["w"] * updates["w"] > 0).all())


def test_complex_entries_and_dtypes():
    w = normal(5, dtype=np.complex64)
    tx = add_cautious_decayed_weights(0.5)
    for factor, decayed in ((1.0, True), (-1.0, False)):
        out, _ = tx.update({"w": factor * w}, tx.init({"w": w}), {"w": w})
        np.testing.assert_allclose(out["w"], factor * w + 0.5 * w * decayed, rtol=1e-6)
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    assert tx.update(half, tx.init(half), half)[0]["w"].dtype == jnp.bfloat16
