"""The whole optimizer: Muon at alpha 0, the published algorithms in NumPy, symmetries, and the AdamW half."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import (
    MatrixLayout,
    Stage,
    muon_labels,
    muon_spectral,
    radial_statistics,
    sawtooth_schedule,
    scale_by_muon,
    scale_by_sawtooth,
)
from tests.optim.matrices import normal, orthogonal, relative
from tests.optim.test_polar import numpy_speed_run

AS_OPTAX = dict(style="optax", method="ns5")
# Two steps of Newton-Schulz, to compile quickly where the polar factor does not matter.
QUICK = {"method": ((1.5, -0.5, 0.0),) * 2}


def params_and_grads(shape, steps=6):
    params = {"mlp": normal(*shape) * 0.3, "bias": normal(5)}
    grads = [{"mlp": normal(*shape, seed=10 + t), "bias": normal(5, seed=20 + t)} for t in range(steps)]
    return params, grads


def train(tx, params, grads):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("shape", ((8, 12), (12, 8), (3, 6, 8)))
@pytest.mark.parametrize("options,theirs", (({}, {}), ({"shape": "rms"}, {"consistent_rms": 0.2})))
def test_alpha_zero_is_the_muon_of_optax(shape, options, theirs):
    params, grads = params_and_grads(shape)
    ours = muon_spectral(0.02, weight_decay=0.1, cautious=False, adam_b2=0.999, muon_options=AS_OPTAX | options)
    dims = {"mlp": optax.contrib.MuonDimensionNumbers(-2, -1), "bias": None}
    oracle = optax.contrib.muon(0.02, weight_decay=0.1, muon_weight_dimension_numbers=dims, **theirs)
    expected = train(oracle, params, grads)[0]
    actual = train(ours, params, grads)[0]
    np.testing.assert_allclose(actual["mlp"], expected["mlp"], atol=1e-6)
    # Our AdamW is without Nesterov, which optax.contrib.muon adds.
    assert np.linalg.norm(actual["bias"] - params["bias"]) > 0


def test_geometric_only_is_not_muon():
    params, grads = params_and_grads((8, 12))
    muon, geometric = (
        train(muon_spectral(0.02, muon_options={"mode": mode}), params, grads)[0]
        for mode in ("interpolate", "orthogonal")
    )
    assert np.abs(muon["mlp"] - geometric["mlp"]).max() > 1e-4


def numpy_keller(params, grads, lr, decay):
    """github.com/KellerJordan/Muon with Nesterov, decoupled decay and its shape factor, for (in, out) weights."""
    w, m = np.asarray(params, np.float64), 0.0
    for g in grads:
        g = np.asarray(g, np.float64)
        m = 0.95 * m + 0.05 * g
        x = 0.05 * g + 0.95 * m
        x = x / np.linalg.norm(x)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        w = w * (1 - lr * decay) - lr * max(1, w.shape[1] / w.shape[0]) ** 0.5 * x
    return w


@pytest.mark.parametrize("shape", ((6, 9), (9, 6)))
def test_fifty_steps_of_keller_jordan(shape):
    params, grads = params_and_grads(shape, 50)
    tx = muon_spectral(0.02, weight_decay=0.1, cautious=False, muon_options={"method": "ns5"})
    expected = numpy_keller(params["mlp"], [g["mlp"] for g in grads], 0.02, 0.1)
    assert relative(train(tx, params, grads)[0]["mlp"], expected) <= 2e-5


def numpy_source(params, grads, lr, alpha, decay):
    """The source document's step: unified path, NorMuon on the polar part only, cautious decay of the whole update."""
    w, m, v = np.asarray(params, np.float64), 0.0, 0.0
    for g in grads:
        g = np.asarray(g, np.float64)
        m = 0.95 * m + 0.05 * g
        g = 0.05 * g + 0.95 * m
        parallel = np.sum(g * w) / np.sum(w * w) * w
        u = numpy_speed_run(g - alpha * parallel)
        norm = np.linalg.norm(u)
        v = 0.95 * v + 0.05 * np.mean(u * u, axis=0, keepdims=True)
        u = u / np.sqrt(np.maximum(v, 1e-10))
        u = (u * norm / np.linalg.norm(u) + alpha * parallel) * max(1, w.shape[1] / w.shape[0]) ** 0.5
        w = w - lr * (u + decay * (u * w >= 0) * w)
    return w


@pytest.mark.parametrize("alpha", (0.0, 0.1, 1.0))
def test_ten_steps_of_the_source_document(alpha):
    params, grads = params_and_grads((6, 9), 10)
    tx = muon_spectral(0.02, alpha, weight_decay=0.03, muon_options={"neuron_beta2": 0.95, "neuron_axis": "longest"})
    expected = numpy_source(params["mlp"], [g["mlp"] for g in grads], 0.02, alpha, 0.03)
    assert relative(train(tx, params, grads)[0]["mlp"], expected) <= 1e-5


@pytest.mark.parametrize("alpha,normalize", ((0.3, "none"), (0.3, "frobenius"), (0.3, "second_moment")))
def test_rotated_problems_have_rotated_solutions(alpha, normalize):
    params, grads = params_and_grads((8, 12))
    q, r = orthogonal(8, 5), orthogonal(12, 6)
    rotate = lambda tree: tree | {"mlp": q @ tree["mlp"] @ r}
    tx = muon_spectral(0.02, alpha, muon_options={"normalize": normalize})
    plain, rotated = train(tx, params, grads)[0], train(tx, rotate(params), list(map(rotate, grads)))[0]
    assert relative(rotated["mlp"], q @ plain["mlp"] @ r) <= 1e-5


def test_gradient_scale_reaches_the_radial_part_only():
    params, grads = params_and_grads((8, 12))
    scaled = [jax.tree.map(lambda g: 1000 * g, g) for g in grads]
    change = lambda tx: np.abs(train(tx, params, grads)[0]["mlp"] - train(tx, params, scaled)[0]["mlp"]).max()
    assert change(muon_spectral(0.02, muon_options=QUICK)) <= 1e-6
    assert change(muon_spectral(0.02, 0.1, muon_options=QUICK)) > 0.1
    assert change(muon_spectral(0.02, 0.1, muon_options=QUICK | {"normalize": "second_moment"})) <= 1e-5


def test_a_stack_of_layers_is_its_layers():
    params, grads = params_and_grads((3, 6, 8))
    tx = muon_spectral(
        0.02, 0.2, weight_decay=0.1, muon_options=QUICK | {"neuron_beta2": 0.9, "normalize": "frobenius"}
    )
    stacked = train(tx, params, grads)[0]["mlp"]
    apart = lambda tree: {f"mlp{i}": tree["mlp"][i] for i in range(3)} | {"bias": tree["bias"]}
    each = train(tx, apart(params), list(map(apart, grads)))[0]
    for i in range(3):
        np.testing.assert_allclose(stacked[i], each[f"mlp{i}"], atol=1e-6)


def test_loops_are_the_same_eager_scanned_vmapped_and_pmapped():
    params, grads = params_and_grads((6, 8), 4)
    tx = muon_spectral(0.02, 0.2, weight_decay=0.1, muon_options=QUICK)
    expected = train(tx, params, grads)[0]
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    scan = lambda params, grads: jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]
    eager = params, tx.init(params)
    for g in grads:
        eager, _ = step(eager, g)
    one = functools.partial(jax.tree.map, lambda x: x[None])
    first = functools.partial(jax.tree.map, lambda x: x[0])
    for other in (
        eager[0],
        scan(params, stacked),
        first(jax.vmap(scan)(one(params), one(stacked))),
        first(jax.pmap(scan)(one(params), one(stacked))),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, other)


def test_donated_states_are_reused():
    params, grads = params_and_grads((6, 8), 2)
    tx = muon_spectral(0.02, 0.2, muon_options=QUICK)
    update = jax.jit(tx.update, donate_argnums=(0, 1))
    state = tx.init(params)
    for g in jax.tree.map(jnp.copy, grads):
        updates, state = update(g, state, params)
    assert bool(jnp.isfinite(updates["mlp"]).all())


def test_the_other_half_is_adamw():
    params, grads = params_and_grads((6, 8))
    tx = muon_spectral(0.1, adam_scale=lambda count: 0.5, adam_b1=0.8, adam_weight_decay=0.2, muon_options=QUICK)
    expected = train(optax.adamw(0.05, b1=0.8, b2=0.95, weight_decay=0.2), params, grads)[0]
    np.testing.assert_allclose(train(tx, params, grads)[0]["bias"], expected["bias"], atol=1e-6)


def test_without_a_learning_rate_it_is_a_direction_for_the_sawtooth():
    params, grads = params_and_grads((6, 8))
    stages = (Stage(0, 3, 1.0, 0.1), Stage(3, 6, 0.5, 0.1))
    sawtooth = optax.chain(
        muon_spectral(None, 0.1, weight_decay=0.1, muon_options=QUICK), scale_by_sawtooth(stages, 0.02)
    )
    with_schedule = muon_spectral(sawtooth_schedule(stages, 0.02), 0.1, weight_decay=0.1, muon_options=QUICK)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
        train(sawtooth, params, grads)[0],
        train(with_schedule, params, grads)[0],
    )


def test_labels_by_path_and_rank():
    params = {
        "embed": {"embedding": jnp.ones((4, 2))},
        "blocks": {
            "mixer": {"w_in": {"kernel": jnp.ones((2, 3, 3))}, "gain": jnp.ones((2, 3)), "spectrum": jnp.ones((2, 5))},
            "pre_norm": {"scale": jnp.ones((2, 3))},
        },
        "multi_head_attention": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)},
        "head": {"kernel": jnp.ones((3, 4))},
    }
    labels = muon_labels(params)
    matrices = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, label in jax.tree_util.tree_leaves_with_path(labels)
        if label == "muon"
    }
    assert matrices == {"blocks/mixer/w_in/kernel", "multi_head_attention/kernel"}
    tx = muon_spectral(0.1, labels=lambda p: jax.tree.map(lambda x: "muon" if x.ndim == 3 else "adamw", p))
    assert set(radial_statistics(tx.init(params))) == {"blocks/mixer/w_in/kernel"}


def test_statistics_of_the_whole_optimizer():
    params, grads = params_and_grads((3, 6, 8))
    stats = radial_statistics(train(muon_spectral(0.02, 0.1, muon_options=QUICK), params, grads)[1])
    assert set(stats) == {"mlp"} and stats["mlp"].cosine.shape == (3,)
    assert bool((stats["mlp"].parallel_norm > 0).all())


def test_heads_and_projections_update_apart():
    layout = {"qkv": MatrixLayout(blocks=(4, 2, 2)), ".*": MatrixLayout()}
    params, grads = (
        {"qkv": normal(6, 8), "out": normal(6, 8)},
        {"qkv": normal(6, 8, seed=1), "out": normal(6, 8, seed=1)},
    )
    tx = scale_by_muon(alpha=0.2, layout=layout, **QUICK)
    out, _ = tx.update(grads, tx.init(params), params)
    alone = scale_by_muon(alpha=0.2, **QUICK)
    query = {"w": params["qkv"][:, :4]}
    expected, _ = alone.update({"w": grads["qkv"][:, :4]}, alone.init(query), query)
    np.testing.assert_allclose(out["qkv"][:, :4], expected["w"], atol=1e-5)
    assert np.abs(out["qkv"] - out["out"]).max() > 0.05


def test_complex_weights():
    params, grads = {"w": normal(4, 6, dtype=np.complex64)}, {"w": normal(4, 6, seed=1, dtype=np.complex64)}
    tx = muon_spectral(0.1, 0.2, weight_decay=0.1, muon_options=QUICK | {"neuron_beta2": 0.9})
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert updates["w"].dtype == jnp.complex64 and bool(jnp.isfinite(updates["w"]).all())
    split = optax.contrib.split_real_and_imaginary(muon_spectral(0.1, 0.2, muon_options=QUICK))
    updates, _ = split.update(grads, split.init(params), params)
    assert updates["w"].dtype == jnp.complex64 and bool(jnp.isfinite(updates["w"]).all())


def test_alpha_is_a_traced_hyperparameter():
    params, grads = params_and_grads((6, 8), 2)
    tx = optax.inject_hyperparams(muon_spectral)(
        learning_rate=0.02, alpha=0.3, weight_decay=optax.constant_schedule(0.1)
    )
    state = tx.init(params)
    plain = muon_spectral(0.02, 0.3, weight_decay=0.1)
    update = jax.jit(tx.update)
    updates, _ = update(grads[0], state, params)
    expected, _ = plain.update(grads[0], plain.init(params), params)
    np.testing.assert_allclose(updates["mlp"], expected["mlp"], atol=1e-6)
    state.hyperparams["alpha"] = jnp.float32(0)
    updates, _ = update(grads[0], state, params)
    muon = muon_spectral(0.02, weight_decay=0.1)
    np.testing.assert_allclose(updates["mlp"], muon.update(grads[0], muon.init(params), params)[0]["mlp"], atol=1e-7)
    assert update._cache_size() == 1


def test_it_trains():
    """A linear map is learnt from zero, whatever alpha is."""
    target = normal(6, 4, seed=9)
    x = normal(64, 6)
    loss = lambda p: jnp.mean((x @ p["w"] - x @ target) ** 2)
    for alpha in (0.0, 0.1, 1.0):
        tx = muon_spectral(optax.linear_schedule(0.3, 0.0, 100), alpha, muon_options={"normalize": "frobenius"})
        params = {"w": jnp.zeros((6, 4))}
        state = tx.init(params)
        step = jax.jit(lambda p, s: (lambda g: tx.update(g, s, p))(jax.grad(loss)(p)))
        for _ in range(100):
            updates, state = step(params, state)
            params = optax.apply_updates(params, updates)
        assert float(loss(params)) < 1e-2 * float(loss({"w": jnp.zeros((6, 4))}))
