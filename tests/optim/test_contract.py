"""What every transform keeps: one table, one test per promise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from fftlm_jax.optim import (
    AdaptiveAlpha,
    add_cautious_decayed_weights,
    hyperball,
    muon_spectral,
    orthogonalize,
    radial_brake,
    scale_by_matrix_shape,
    scale_by_muon,
    scale_by_nesterov_ema,
    scale_by_neuron_variance,
    with_spectral,
)
from tests.optim.matrices import normal


class Case(NamedTuple):
    factory: Any
    options: dict[str, Any]
    reads_params: bool = False

    def make(self):
        return self.factory(**self.options)


# One step of Newton-Schulz, to compile quickly.
ONE_STEP = ((1.5, -0.5, 0.0),)


def spectral(**options):
    return Case(with_spectral, {"inner": orthogonalize(ONE_STEP), "alpha": 0.3} | options, reads_params=True)


CASES = {
    "nesterov_ema": Case(scale_by_nesterov_ema, {"beta": 0.9}),
    "nesterov_ema_optax": Case(scale_by_nesterov_ema, {"beta": 0.9, "style": "optax", "mu_dtype": "float32"}),
    "orthogonalize": Case(orthogonalize, {"safety": 1.05}),
    "spectral": spectral(),
    "spectral_tangent": spectral(mode="tangent", normalize="frobenius", granularity="out"),
    "spectral_adaptive": spectral(normalize="second_moment", adaptive=AdaptiveAlpha(steps=1)),
    "neuron_variance": Case(scale_by_neuron_variance, {"beta2": 0.9}),
    "cautious_decay": Case(add_cautious_decayed_weights, {"weight_decay": 0.1}, True),
    "matrix_shape": Case(scale_by_matrix_shape, {"style": "rms"}),
    "radial_brake": Case(radial_brake, {"outward": 0.3}, True),
    "hyperball": Case(hyperball, {}, True),
    "muon": Case(scale_by_muon, {"alpha": 0.3, "beta": 0.9, "neuron_beta2": 0.9, "method": ONE_STEP}, True),
    "muon_spectral": Case(
        muon_spectral,
        {"learning_rate": 0.1, "alpha": 0.3, "weight_decay": 0.1, "muon_options": {"method": ONE_STEP}},
        True,
    ),
}
STATELESS = {"orthogonalize", "matrix_shape", "radial_brake", "hyperball"}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def trees(dtype=jnp.float32, seed=0):
    """Parameters, and two steps of gradients."""
    make = lambda s: {"a": normal(4, 6, seed=s).astype(dtype), "b": {"c": normal(2, 6, 4, seed=s + 1).astype(dtype)}}
    return make(seed), [make(seed + 10), make(seed + 20)]


def run(tx, params, grads):
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
    return updates, state


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.float64(x), np.float64(y), **tolerance), a, b)


def signature(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


@every_case
def test_jit_compiles_once_and_states_keep_their_shape(case):
    params, grads = trees()
    tx = case.make()
    state = tx.init(params)
    update = jax.jit(tx.update)
    for g in grads:
        updates, new_state = update(g, state, params)
        assert signature(new_state) == signature(state)
        state = new_state
    assert update._cache_size() == 1
    assert_close(updates, run(tx, params, grads)[0], atol=1e-5)


@every_case
@pytest.mark.parametrize("gradient_dtype", ("bfloat16", "float32"))
@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float32"))
def test_updates_have_the_dtype_of_gradients_and_states_keep_theirs(case, dtype, gradient_dtype):
    params, grads = trees(dtype)[0], trees(gradient_dtype)[1][0]
    tx = case.make()
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, grads, state, params)
    assert signature(updates) == signature(jax.eval_shape(lambda g: g, grads))
    assert signature(after) == signature(state)


@every_case
def test_the_update_does_something(case):
    """Else all other promises would hold for the identity."""
    params, grads = trees()
    updates, _ = run(case.make(), params, grads)
    for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads[-1])):
        assert not np.allclose(u, g)


@every_case
def test_stateless_ones_keep_no_state_and_others_do(case):
    state = case.make().init(trees()[0])
    assert bool(jax.tree.leaves(state)) == (case not in [CASES[name] for name in STATELESS])


@every_case
def test_masked_leaves_are_left_alone(case):
    params, grads = trees()
    vector = {"norm": jnp.arange(3.0)}
    with_vector = lambda tree: tree | vector
    tx = optax.masked(case.make(), {"a": True, "b": True, "norm": False})
    updates, _ = run(tx, with_vector(params), list(map(with_vector, grads)))
    np.testing.assert_array_equal(updates.pop("norm"), vector["norm"])
    assert_close(updates, run(case.make(), params, grads)[0], atol=1e-5)


@every_case
def test_inside_a_chain_with_extra_arguments(case):
    params, grads = trees()
    tx = optax.chain(optax.clip_by_global_norm(1e9), case.make(), optax.scale(-0.5))
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params, value=1.0)
    assert_close(updates, jax.tree.map(lambda u: -0.5 * u, run(case.make(), params, grads)[0]), atol=1e-5)


def numbers(case):
    return {name: value for name, value in case.options.items() if isinstance(value, float)}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if numbers(case)])
def test_numbers_can_be_injected(name):
    case = CASES[name]
    params, grads = trees()
    expected = run(case.make(), params, grads)[0]
    tx = optax.inject_hyperparams(case.factory)(**case.options)
    updates, state = run(tx._replace(update=jax.jit(tx.update)), params, grads)
    assert_close(updates, expected, atol=2e-5)
    assert set(numbers(case)) <= set(state.hyperparams)
    for number, value in numbers(case).items():
        changed = optax.inject_hyperparams(case.factory)(**case.options | {number: 0.5 * value})
        different = run(changed, params, grads)[0]
        assert not np.allclose(different["a"], expected["a"], atol=1e-6), f"{number} has no effect"


@every_case
def test_under_multi_steps_it_sees_the_mean(case):
    params, grads = trees()
    tx = optax.MultiSteps(case.make(), every_k_schedule=2)
    state, update = tx.init(params), jax.jit(tx.update)
    first, state = update(grads[0], state, params)
    second, _ = update(grads[1], state, params)
    assert not any(bool(x.any()) for x in jax.tree.leaves(first))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    assert_close(second, run(case.make(), params, [mean])[0], atol=1e-4)


@every_case
def test_a_checkpoint_continues_bit_for_bit(case, tmp_path):
    params, grads = trees()
    tx = case.make()
    _, state = tx.update(grads[0], tx.init(params), params)
    saved = {"params": params, "state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(lambda: {"params": params, "state": tx.init(params)})
        restored = checkpointer.restore(tmp_path / "state", abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    after, straight = tx.update(grads[1], restored["state"], restored["params"]), tx.update(grads[1], state, params)
    jax.tree.map(np.testing.assert_array_equal, after, straight)


@every_case
@pytest.mark.parametrize("zero", ("gradients", "params", "both", "one layer"))
def test_zeros_make_no_nan(case, zero):
    params, grads = trees()
    blank = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    if zero in ("params", "both"):
        params = blank(params)
    if zero in ("gradients", "both"):
        grads = list(map(blank, grads))
    if zero == "one layer":
        pad = lambda tree: tree | {"b": {"c": tree["b"]["c"].at[1].set(0)}}
        params, grads = pad(params), list(map(pad, grads))
    updates, state = run(case.make(), params, grads)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((updates, state)))
    if zero == "both":
        assert not any(bool(x.any()) for x in jax.tree.leaves(updates))
    if zero == "one layer":
        assert not updates["b"]["c"][1].any() and updates["b"]["c"][0].any()


@every_case
def test_a_nan_gradient_stays_in_its_own_matrix(case):
    params, grads = trees()
    spoiled = [g | {"b": {"c": g["b"]["c"].at[1, 0, 0].set(jnp.nan)}} for g in grads]
    updates, _ = run(case.make(), params, spoiled)
    expected, _ = run(case.make(), params, grads)
    np.testing.assert_allclose(updates["b"]["c"][0], expected["b"]["c"][0], atol=1e-5)
    np.testing.assert_allclose(updates["a"], expected["a"], atol=1e-5)
    assert bool(jnp.isnan(updates["b"]["c"][1]).any())


@every_case
def test_params_are_required_where_they_are_read(case):
    params, grads = trees()
    tx = case.make()
    if case.reads_params:
        with pytest.raises(ValueError, match="params"):
            tx.update(grads[0], tx.init(params))
    else:
        tx.update(grads[0], tx.init(params))


@every_case
def test_an_empty_tree_is_fine(case):
    tx = case.make()
    updates, _ = tx.update({}, tx.init({}), {})
    assert updates == {}


@every_case
def test_shapes_are_known_without_arrays(case):
    params, _ = trees()
    tx = case.make()
    abstract = jax.eval_shape(tx.init, params)
    assert signature(abstract)[0] == jax.tree.structure(tx.init(params))
