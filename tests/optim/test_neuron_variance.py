"""NorMuon: equal neurons, the same norm, and the recursion of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fftlm_jax.optim import MatrixLayout, scale_by_neuron_variance
from tests.optim.matrices import normal


def run(tx, updates):
    state, out, update = tx.init(updates[0]), [], jax.jit(tx.update)
    for u in updates:
        u, state = update(u, state)
        out.append(np.asarray(u))
    return out, state


UPDATES = [np.asarray(normal(8, 12, seed=seed)) * np.float32(10.0**-seed) for seed in range(5)]
STACK = (3, 8, 12)


@pytest.mark.parametrize("axis,reduced", (("out", 0), ("in", 1), ("longest", 0)))
def test_against_numpy(axis, reduced):
    """With bias correction, which cancels."""
    out, state = run(scale_by_neuron_variance(0.9, axis=axis), UPDATES)
    v = 0.0
    for t, (u, ours) in enumerate(zip(UPDATES, out), start=1):
        u = np.asarray(u, np.float64)
        v = 0.9 * v + 0.1 * np.mean(u * u, axis=reduced, keepdims=True)
        y = u / np.sqrt(v / (1 - 0.9**t))
        np.testing.assert_allclose(ours, y * np.linalg.norm(u) / np.linalg.norm(y), rtol=1e-5)
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(u), rel=1e-6)
    assert state.second_moment[0].shape == ((1, 12) if reduced == 0 else (8, 1))


@pytest.mark.parametrize("shape,expected", (((12, 8), (12, 1)), ((8, 12), (1, 12)), ((8, 8), (1, 8))))
def test_the_longest_axis(shape, expected):
    assert (
        jax.eval_shape(scale_by_neuron_variance(axis="longest").init, np.ones(shape)).second_moment[0].shape == expected
    )


def test_without_memory_every_neuron_comes_out_alike():
    scale = np.geomspace(0.01, 100, 12, dtype=np.float32)
    tx = scale_by_neuron_variance(0.0)
    np.testing.assert_allclose(
        np.linalg.norm(run(tx, [UPDATES[0] * scale])[0][0], axis=0),
        np.linalg.norm(UPDATES[0] * scale) / np.sqrt(12),
        rtol=1e-4,
    )


def test_a_zero_matrix_stays_zero_and_a_dead_neuron_dead():
    u = np.array(normal(*STACK))
    u[0] = 0
    u[1, :, 2] = 0
    (out,), _ = run(scale_by_neuron_variance(), [u])
    np.testing.assert_array_equal(out[0], 0)
    np.testing.assert_array_equal(out[1, :, 2], 0)
    assert np.isfinite(out).all()


def test_stacks_blocks_and_dtypes():
    u = np.asarray(normal(*STACK))
    (out,), _ = run(scale_by_neuron_variance(), [u])
    for i in range(3):
        np.testing.assert_allclose(out[i], run(scale_by_neuron_variance(), [u[i]])[0][0], atol=1e-6)
    (split,), state = run(scale_by_neuron_variance(layout=MatrixLayout(blocks=(8, 4))), [u])
    np.testing.assert_allclose(split[..., 8:], run(scale_by_neuron_variance(), [u[..., 8:]])[0][0], atol=1e-6)
    assert [v.shape for v in state.second_moment] == [(3, 1, 8), (3, 1, 4)]
    (half,), state = run(scale_by_neuron_variance(), [u.astype(jnp.bfloat16)])
    assert half.dtype == jnp.bfloat16 and jax.tree.leaves(state)[0].dtype == jnp.float32


def test_an_unknown_axis_is_an_error():
    with pytest.raises(ValueError, match="unknown neuron axis 'rows'"):
        scale_by_neuron_variance(axis="rows")
