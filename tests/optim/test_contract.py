"""What every transform keeps: one table, one test per promise."""

import dataclasses
import functools
from typing import Any

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


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A transform. Its jitted functions are compiled once for all tests, which all give them arrays of equal shapes."""

    factory: Any
    options: dict[str, Any]
    reads_params: bool = False

    def make(self):
        return self.factory(**self.options)

    @functools.cached_property
    def init(self):
        return jax.jit(self.make().init)

    @functools.cached_property
    def update(self):
        return jax.jit(self.make().update)

    def run(self, params, grads):
        state = self.init(params)
        for g in grads:
            updates, state = self.update(g, state, params)
        return updates, state


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


def trees(dtype="float32"):
    """Parameters, and two steps of gradients."""
    array = lambda *shape, seed: np.asarray(normal(*shape, seed=seed)).astype(jnp.dtype(dtype))
    make = lambda seed: {"a": array(4, 6, seed=seed), "b": {"c": array(2, 6, 4, seed=seed + 1)}}
    return make(0), [make(10), make(20)]


def signature(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


@every_case
def test_jit_compiles_once_and_states_keep_their_shape(case):
    params, grads = trees()
    state = case.init(params)
    for g in grads:
        _, new_state = case.update(g, state, params)
        assert signature(new_state) == signature(state)
        state = new_state
    assert case.update._cache_size() == 1


@every_case
@pytest.mark.parametrize(
    "dtype,gradient_dtype", (("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "bfloat16"))
)
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
    updates, _ = case.run(params, grads)
    for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads[-1])):
        assert not np.allclose(u, g)


@every_case
def test_stateless_ones_keep_no_state_and_others_do(case):
    state = jax.eval_shape(case.make().init, trees()[0])
    assert bool(jax.tree.leaves(state)) == (case not in [CASES[name] for name in STATELESS])


VECTOR = np.arange(3, dtype=np.float32)


@functools.cache
def composed(case):
    """Updates by a masked transform within a chain, told more than it needs, once every two steps; the one step's."""
    params, grads = trees()
    only_b = lambda tree: {"b": tree["b"], "norm": VECTOR}
    masked = optax.masked(case.make(), {"b": True, "norm": False})
    tx = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1e9), masked, optax.scale(-0.5)), every_k_schedule=2)
    update = jax.jit(lambda g, state, params: tx.update(g, state, params, value=1.0))
    first, state = update(only_b(grads[0]), jax.jit(tx.init)(only_b(params)), only_b(params))
    second, _ = update(only_b(grads[1]), state, only_b(params))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    return first, second, case.run(params, [mean])[0]


@every_case
def test_masked_leaves_are_left_alone(case):
    _, updates, _ = composed(case)
    np.testing.assert_allclose(updates["norm"], -0.5 * VECTOR, rtol=1e-6)


@every_case
def test_inside_a_chain_with_extra_arguments(case):
    _, updates, alone = composed(case)
    np.testing.assert_allclose(updates["b"]["c"], -0.5 * alone["b"]["c"], atol=1e-4)


def numbers(case):
    return {name: value for name, value in case.options.items() if isinstance(value, float)}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if numbers(case)])
def test_numbers_can_be_injected(name):
    case = CASES[name]
    params, grads = trees()
    expected = case.run(params, grads)[0]["a"]
    tx = optax.inject_hyperparams(case.factory)(**case.options)
    begun, update = jax.jit(tx.init)({"a": params["a"]}), jax.jit(tx.update)
    assert set(numbers(case)) <= set(begun.hyperparams)

    def run_with(**changed):
        state = begun._replace(hyperparams={**begun.hyperparams, **changed})
        for g in grads:
            updates, state = update({"a": g["a"]}, state, {"a": params["a"]})
        return updates["a"]

    np.testing.assert_allclose(run_with(), expected, atol=2e-5)
    for number, value in numbers(case).items():
        different = run_with(**{number: np.asarray(0.5 * value, begun.hyperparams[number].dtype)})
        assert not np.allclose(different, expected, atol=1e-6), f"{number} has no effect"


@every_case
def test_under_multi_steps_it_sees_the_mean(case):
    first, updates, of_the_mean = composed(case)
    assert not any(x.any() for x in map(np.asarray, jax.tree.leaves(first)))
    np.testing.assert_allclose(updates["b"]["c"], -0.5 * of_the_mean["b"]["c"], atol=1e-4)
    assert np.any(updates["b"]["c"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """All parameters and states after one step, as they were saved, and as they were read again."""
    params, grads = trees()
    saved = {name: {"params": params, "state": case.run(params, grads[:1])[1]} for name, case in CASES.items()}
    abstract = {
        name: jax.eval_shape(lambda case=case: {"params": params, "state": case.make().init(params)})
        for name, case in CASES.items()
    }
    folder = tmp_path_factory.mktemp("checkpoint") / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder, abstract)
    return saved, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), restored)


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_continues_bit_for_bit(checkpoint, name):
    saved, restored = (tree[name] for tree in checkpoint)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    gradient = trees()[1][1]
    params = jax.tree.map(np.asarray, restored["params"])
    after = CASES[name].update(gradient, restored["state"], params)
    jax.tree.map(np.testing.assert_array_equal, after, CASES[name].update(gradient, saved["state"], saved["params"]))


@every_case
@pytest.mark.parametrize("zero", ("gradients", "params", "both", "one layer"))
def test_zeros_make_no_nan(case, zero):
    params, grads = trees()
    blank = lambda tree: jax.tree.map(np.zeros_like, tree)
    if zero in ("params", "both"):
        params = blank(params)
    if zero in ("gradients", "both"):
        grads = list(map(blank, grads))
    if zero == "one layer":
        for tree in (params, *grads):
            tree["b"]["c"][1] = 0
    updates, state = case.run(params, grads)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    updates = jax.device_get(updates)
    if zero == "both":
        assert not any(x.any() for x in jax.tree.leaves(updates))
    if zero == "one layer":
        assert not updates["b"]["c"][1].any() and updates["b"]["c"][0].any()


@every_case
def test_a_nan_gradient_stays_in_its_own_matrix(case):
    params, grads = trees()
    expected, _ = case.run(params, grads)
    for g in grads:
        g["b"]["c"][1, 0, 0] = np.nan
    updates = jax.device_get(case.run(params, grads)[0])
    np.testing.assert_allclose(updates["b"]["c"][0], expected["b"]["c"][0], atol=1e-5)
    np.testing.assert_allclose(updates["a"], expected["a"], atol=1e-5)
    assert np.isnan(updates["b"]["c"][1]).any()


@every_case
def test_params_are_required_where_they_are_read(case):
    params, grads = trees()
    tx = case.make()
    update = lambda: jax.eval_shape(lambda g: tx.update(g, tx.init(params)), grads[0])
    if case.reads_params:
        with pytest.raises(ValueError, match="params"):
            update()
    else:
        update()


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
    assert signature(abstract)[0] == jax.tree.structure(case.init(params))
