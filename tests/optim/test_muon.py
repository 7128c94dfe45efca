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


def array(*shape, seed=0, dtype=np.float32):
    return np.asarray(normal(*shape, seed=seed, dtype=dtype))


def params_and_grads(shape, steps=6):
    return matrices_and_grads({"mlp": shape}, steps)


def matrices_and_grads(shapes, steps=6):
    make = lambda seed: {name: array(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}
    params = {name: 0.3 * matrix for name, matrix in make(0).items()} | {"bias": array(5)}
    return params, [make(10 * (1 + t)) | {"bias": array(5, seed=20 + t)} for t in range(steps)]


@functools.cache
def scanned(tx):
    """All steps in one program, which is compiled once for equal shapes."""

    @jax.jit
    def run(params, grads):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    return run


def stacked(grads):
    return jax.tree.map(lambda *g: np.stack(g), *grads)


def train(tx, params, grads):
    return jax.device_get(scanned(tx)(params, stacked(grads)))


@pytest.mark.parametrize("options,theirs", (({}, {}), ({"shape": "rms"}, {"consistent_rms": 0.2})))
def test_alpha_zero_is_the_muon_of_optax(options, theirs):
    shapes = {"tall": (12, 8), "wide": (8, 12), "stack": (3, 6, 8)}
    params, grads = matrices_and_grads(shapes)
    is_matrix = lambda params: {name: "adamw" if name == "bias" else "muon" for name in params}
    options = {"muon_options": AS_OPTAX | options, "labels": is_matrix}
    ours = muon_spectral(0.02, weight_decay=0.1, cautious=False, adam_b2=0.999, **options)
    dims = {name: optax.contrib.MuonDimensionNumbers(-2, -1) for name in shapes} | {"bias": None}
    oracle = optax.contrib.muon(0.02, weight_decay=0.1, muon_weight_dimension_numbers=dims, **theirs)
    expected = train(oracle, params, grads)[0]
    actual = train(ours, params, grads)[0]
    for name in shapes:
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-6)
    # Our AdamW is without Nesterov, which optax.contrib.muon adds.
    assert np.linalg.norm(actual["bias"] - params["bias"]) > 0


def test_geometric_only_is_not_muon():
    params, grads = params_and_grads((8, 12))
    muon, geometric = (
        train(muon_spectral(0.02, muon_options=QUICK | {"mode": mode}), params, grads)[0]
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


def test_fifty_steps_of_keller_jordan():
    params, grads = matrices_and_grads({"mlp": (6, 9), "mlp2": (9, 6)}, 50)
    tx = muon_spectral(0.02, weight_decay=0.1, cautious=False, muon_options={"method": "ns5"})
    found = train(tx, params, grads)[0]
    for name in ("mlp", "mlp2"):
        expected = numpy_keller(params[name], [g[name] for g in grads], 0.02, 0.1)
        assert relative(found[name], expected) <= 2e-5


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
    params, grads = params_and_grads((6, 8))
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
    params, grads = params_and_grads((6, 8), 2)
    tx = muon_spectral(0.02, 0.2, weight_decay=0.1, muon_options=QUICK)
    expected = train(tx, params, grads)[0]
    eager = stepwise = params, tx.init(params)
    for g in grads:
        eager = step(tx, eager, g)
        stepwise = jax.jit(step, static_argnums=0)(tx, stepwise, g)
    run = lambda params, grads: scanned(tx)(params, grads)[0]
    one = functools.partial(jax.tree.map, lambda x: x[None])
    first = functools.partial(jax.tree.map, lambda x: np.asarray(x)[0])
    for other in (
        eager[0],
        stepwise[0],
        first(jax.vmap(run)(one(params), one(stacked(grads)))),
        first(jax.pmap(run)(one(params), one(stacked(grads)))),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, other)


def step(tx, carry, g):
    params, state = carry
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state


def test_donated_states_are_reused():
    params, grads = params_and_grads((6, 8), 2)
    tx = muon_spectral(0.02, 0.2, muon_options=QUICK)
    update = jax.jit(tx.update, donate_argnums=(0, 1))
    state = jax.jit(tx.init)(params)
    for g in grads:
        updates, state = update(jax.tree.map(jnp.asarray, g), state, params)
    assert np.isfinite(updates["mlp"]).all()


def test_the_other_half_is_adamw():
    params, grads = params_and_grads((6, 8))
    expected = train(optax.adamw(0.05, b1=0.8, b2=0.95, weight_decay=0.2), params, grads)[0]
    for scale in (0.5, lambda count: 0.5):
        tx = muon_spectral(0.1, adam_scale=scale, adam_b1=0.8, adam_weight_decay=0.2, muon_options=QUICK)
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
    assert (stats["mlp"].parallel_norm > 0).all()


def one_update(tx, params, grads):
    return jax.device_get(jax.jit(lambda: tx.update(grads, tx.init(params), params)[0])())


def test_heads_and_projections_update_apart():
    layout = {"qkv": MatrixLayout(blocks=(4, 2, 2)), ".*": MatrixLayout()}
    params, grads = ({"qkv": array(6, 8, seed=seed), "out": array(6, 8, seed=seed)} for seed in (0, 1))
    out = one_update(scale_by_muon(alpha=0.2, layout=layout, **QUICK), params, grads)
    query = lambda tree: {"w": tree["qkv"][:, :4]}
    expected = one_update(scale_by_muon(alpha=0.2, **QUICK), query(params), query(grads))
    np.testing.assert_allclose(out["qkv"][:, :4], expected["w"], atol=1e-5)
    assert np.abs(out["qkv"] - out["out"]).max() > 0.05


def test_complex_weights():
    params, grads = ({"w": array(4, 6, seed=seed, dtype=np.complex64)} for seed in (0, 1))
    tx = muon_spectral(0.1, 0.2, weight_decay=0.1, muon_options=QUICK | {"neuron_beta2": 0.9})
    split = optax.contrib.split_real_and_imaginary(muon_spectral(0.1, 0.2, muon_options=QUICK))
    for transform in (tx, split):
        updates = one_update(transform, params, grads)
        assert updates["w"].dtype == np.complex64 and np.isfinite(updates["w"]).all() and updates["w"].any()


def test_alpha_is_a_traced_hyperparameter():
    params, grads = params_and_grads((6, 8), 2)
    tx = optax.inject_hyperparams(muon_spectral)(
        learning_rate=0.02, alpha=0.3, weight_decay=optax.constant_schedule(0.1)
    )
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    updates, _ = update(grads[0], state, params)
    expected = one_update(muon_spectral(0.02, 0.3, weight_decay=0.1), params, grads[0])
    np.testing.assert_allclose(updates["mlp"], expected["mlp"], atol=1e-6)
    state.hyperparams["alpha"] = jnp.asarray(np.float32(0))
    updates, _ = update(grads[0], state, params)
    muon = one_update(muon_spectral(0.02, weight_decay=0.1), params, grads[0])
    np.testing.assert_allclose(updates["mlp"], muon["mlp"], atol=1e-6)
    assert update._cache_size() == 1


def test_it_trains():
    """A linear map is learnt from zero, whatever alpha is."""
    target, x, zero = array(6, 4, seed=9), array(64, 6), {"w": np.zeros((6, 4), np.float32)}
    loss = lambda p: jnp.mean((x @ p["w"] - x @ target) ** 2)

    @jax.jit
    def loss_after(alpha):
        tx = muon_spectral(optax.linear_schedule(0.3, 0.0, 100), alpha, muon_options={"normalize": "frobenius"})

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return loss(jax.lax.scan(step, (zero, tx.init(zero)), None, length=100)[0][0])

    for alpha in (0.0, 0.1, 1.0):
        assert loss_after(np.float32(alpha)) < 1e-2 * np.mean((x @ target) ** 2)
