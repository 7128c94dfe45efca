"""The radial component: its two ends, its symmetries and units, and what alpha may be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import AdaptiveAlpha, MatrixLayout, PerPath, orthogonalize, polar, radial_statistics, with_spectral
from tests.optim.matrices import cosine, decaying, normal, orthogonal, relative

# Nearly all matrices have this shape, since an operation is compiled once for each.
SHAPE, STACK = (8, 12), (3, 8, 12)
G, W = (np.asarray(normal(*SHAPE, seed=seed)) for seed in (0, 1))
INNER = orthogonalize("ns5")


def direction(alpha=0.0, gradient=G, weight=W, steps=1, inner=INNER, **options):
    """The update of the last of several steps with one gradient, and the state after it."""
    tx = with_spectral(inner, alpha, **options)
    gradient, weight = jnp.asarray(gradient, jnp.float32), jnp.asarray(weight, jnp.float32)
    state = tx.init({"w": weight})
    for _ in range(steps):
        updates, state = tx.update({"w": gradient}, state, {"w": weight})
    return updates["w"], state


def of(alpha=0.0, *arguments, **options):
    """The update alone, as a NumPy array."""
    return np.asarray(direction(alpha, *arguments, **options)[0])


def inner_update():
    return np.asarray(INNER.update({"w": jnp.asarray(G)}, optax.EmptyState())[0]["w"])


def parallel(gradient, weight):
    g, w = np.asarray(gradient, np.float64), np.asarray(weight, np.float64)
    return np.sum(g * w) / np.sum(w * w) * w


@pytest.mark.parametrize("alpha", (0.0, 0.1, 0.5, 1.0))
def test_modes_are_their_formulas(alpha):
    along = parallel(G, W)
    inputs = {"interpolate": G - alpha * along, "orthogonal": G - along, "add": G}
    for mode, x in inputs.items():
        expected = np.asarray(polar(jnp.float32(x), "ns5")) + alpha * along
        assert relative(of(alpha, mode=mode), expected) <= 1e-5, mode


@pytest.mark.parametrize("mode", ("interpolate", "add"))
def test_alpha_zero_is_the_inner_transform_bit_for_bit(mode):
    expected = inner_update()
    np.testing.assert_array_equal(direction(0.0, mode=mode)[0], expected)
    np.testing.assert_array_equal(direction(0.0, mode=mode, diagnostics=False)[0], expected)
    np.testing.assert_array_equal(direction(jnp.float32(0), mode=mode)[0], expected)
    # Compiled as one program, the norm of G may be summed in another order.
    traced = jax.jit(lambda alpha: direction(alpha, mode=mode)[0])
    np.testing.assert_allclose(traced(jnp.float32(0)), expected, atol=5e-6)


def test_a_traced_alpha_of_zero_ignores_wild_weights():
    for wild in (np.inf, np.nan):
        weight = W.copy()
        weight[0, 0] = wild
        np.testing.assert_array_equal(direction(jnp.float32(0), weight=weight)[0], inner_update())


def test_the_branching_form_at_zero_is_not_the_inner_transform():
    assert relative(direction(0.0, mode="orthogonal")[0], direction(0.0)[0]) > 1e-3


def test_both_forms_agree_at_one():
    np.testing.assert_allclose(direction(1.0)[0], direction(1.0, mode="orthogonal")[0], atol=1e-6)


def test_tangent_updates_are_tangent_and_orthogonal_ones_are_not():
    """The polar factor of a gradient perpendicular to W has a component along W if the spectrum of W is uneven."""
    weight = np.asarray(decaying(*SHAPE, 1e-3))
    gradient = np.asarray(normal(*SHAPE, seed=3)) - weight
    tangent, _ = direction(0.0, gradient, weight, mode="tangent")
    branching, _ = direction(0.0, gradient, weight, mode="orthogonal")
    assert abs(cosine(tangent, weight)) <= 1e-6
    assert abs(cosine(branching, weight)) > 0.01


@pytest.mark.parametrize("normalize", ("none", "frobenius", "second_moment"))
@pytest.mark.parametrize("mode", ("interpolate", "orthogonal", "tangent"))
def test_rotations_and_transposes_of_both(mode, normalize):
    q, r = orthogonal(8, 5), orthogonal(12, 6)
    options = dict(mode=mode, normalize=normalize)
    u = of(0.3, **options)
    assert relative(of(0.3, q @ G @ r, q @ W @ r, **options), q @ u @ r) <= 1e-5
    assert relative(of(0.3, G.T, W.T, **options), u.T) <= 1e-5


@pytest.mark.parametrize("k", (1e-12, 64.0, 1e12))
def test_units_of_the_gradient(k):
    """Without a normalization alpha has the units of 1 / gradient; with one, or with grad_units, it has none."""
    radial = {n: of(0.3, k * G, normalize=n) - of(0.3, G, normalize=n) for n in ("frobenius", "second_moment")}
    for normalize, difference in radial.items():
        assert np.linalg.norm(difference) <= 1e-5, normalize
    assert relative(of(0.3, k * G, grad_units=1 / k), of(0.3)) <= 1e-5
    plain = of(0.3, k * G) - of(0.3, k * G, grad_units=0.0)
    assert relative(plain, k * 0.3 * parallel(G, W)) <= (1e-5 if k > 1e-3 else np.inf)


def test_sizes_of_normalized_components():
    along = lambda **options: np.linalg.norm(of(1.0, **options) - of(1.0, grad_units=0.0))
    assert along(normalize="frobenius") == pytest.approx(np.sqrt(8) * abs(cosine(G, W)), rel=1e-4)
    # The first projection is its own root mean square, and so is every one of a constant gradient.
    for steps in (1, 4):
        assert along(normalize="second_moment", steps=steps) == pytest.approx(np.sqrt(8), rel=1e-4)


def test_the_second_moment_is_one_number_per_matrix():
    _, state = direction(0.1, normal(*STACK), normal(*STACK, seed=1), normalize="second_moment")
    assert state.second_moment["w"][0].shape == (3,) and state.adaptive == ()
    assert direction(0.1)[1].second_moment == ()


PARAMS = {"attn": {"q": normal(*SHAPE, seed=2)}, "mlp": normal(*SHAPE, seed=3)}
GRADS = {"attn": {"q": normal(*SHAPE, seed=4)}, "mlp": normal(*SHAPE, seed=5)}


def tree_direction(alpha, count=1, **options):
    tx = with_spectral(INNER, alpha, **options)
    state = tx.init(PARAMS)
    for _ in range(count):
        updates, state = tx.update(GRADS, state, PARAMS)
    return updates


@pytest.mark.parametrize(
    "alpha",
    (
        {"attn": 0.05, ".*": 0.15},
        PerPath(lambda path: 0.05 if path.startswith("attn/") else 0.15),
        {"attn": {"q": 0.05}, "mlp": 0.15},
        {"attn": lambda count: 0.05, "mlp": 0.15},
    ),
)
def test_alpha_by_path(alpha):
    out = tree_direction(alpha)
    np.testing.assert_allclose(out["attn"]["q"], tree_direction(0.05)["attn"]["q"], atol=1e-6)
    np.testing.assert_allclose(out["mlp"], tree_direction(0.15)["mlp"], atol=1e-6)


def test_alpha_by_path_must_cover_every_leaf():
    with pytest.raises(ValueError, match="mlp"):
        tree_direction({"attn": 0.05})


def test_alpha_by_schedule():
    schedule = lambda count: jnp.where(count < 2, 0.0, 0.4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), tree_direction(schedule, 2), tree_direction(0.0)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), tree_direction(schedule, 3), tree_direction(0.4)
    )
    units = tree_direction(0.2, 2, grad_units=lambda count: count * 5.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), units, tree_direction(0.2, grad_units=5.0))


jitted_direction = jax.jit(lambda gradient, weight: direction(0.3, gradient, weight)[0])


def test_blocks_are_matrices_of_their_own():
    layout = MatrixLayout(blocks=(4, 8))
    inner = orthogonalize("ns5", layout=layout)
    out, state = jax.jit(lambda g: direction(0.3, g, inner=inner, layout=layout))(G)
    out = np.asarray(out)
    np.testing.assert_allclose(out[:, :4], jitted_direction(G[:, :4], W[:, :4]), atol=1e-5)
    np.testing.assert_allclose(out[:, 4:], jitted_direction(G[:, 4:], W[:, 4:]), atol=1e-5)
    assert set(radial_statistics(state)) == {"w/0", "w/1"}


def test_a_stack_is_its_layers():
    g, w = (np.asarray(normal(*STACK, seed=seed)) for seed in (0, 1))
    stacked, state = direction(0.3, g, w, normalize="frobenius")
    for i, layer in enumerate(np.asarray(stacked)):
        np.testing.assert_allclose(layer, of(0.3, g[i], w[i], normalize="frobenius"), atol=1e-6)
    assert radial_statistics(state)["w"].ratio.shape == (3,)


@pytest.mark.parametrize("normalize", ("none", "frobenius", "second_moment"))
def test_zero_weights_and_zero_gradients(normalize):
    options = dict(normalize=normalize, adaptive=AdaptiveAlpha(steps=1), steps=3)
    at_zero_weight, _ = direction(0.5, G, 0 * W, **options)
    np.testing.assert_array_equal(at_zero_weight, polar(jnp.asarray(G), "ns5"))
    at_zero_gradient, _ = direction(0.5, 0 * G, W, **options)
    np.testing.assert_array_equal(at_zero_gradient, 0)


def test_diagnostics_are_those_of_the_last_update():
    _, state = direction(0.3, steps=2)
    stats = radial_statistics((optax.EmptyState(), {"x": state}))["w"]
    assert float(stats.ratio) == pytest.approx(float(np.sum(G * W) / np.sum(W * W)), rel=1e-5)
    assert float(stats.cosine) == pytest.approx(cosine(G, W), rel=1e-5)
    assert float(stats.parallel_norm) == pytest.approx(np.linalg.norm(parallel(G, W)), rel=1e-5)
    assert radial_statistics(direction(0.3, diagnostics=False)[1]) == {}
    with pytest.raises(ValueError, match="statistics of w twice"):
        radial_statistics((state, state))


@pytest.mark.parametrize(
    "options,message",
    (
        ({"mode": "unified"}, "unknown mode 'unified'"),
        ({"normalize": "rms"}, "unknown normalize 'rms'"),
        ({"normalize": "second_moment", "granularity": "out"}, "per matrix"),
    ),
)
def test_unknown_choices(options, message):
    with pytest.raises(ValueError, match=message):
        with_spectral(INNER, 0.1, **options)


def test_a_vector_is_named():
    with pytest.raises(ValueError, match=r"blocks/norm has shape \(3,\)"):
        with_spectral(INNER, 0.1).init({"blocks": {"norm": jnp.ones(3)}})
