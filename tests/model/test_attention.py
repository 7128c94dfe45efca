"""Rotary causal attention against NumPy, and what rotation promises."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs import aligned, attention
from fftlm_jax.config.reading import read_config
from fftlm_jax.model import build
from fftlm_jax.model.mixers import rotate
from fftlm_jax.spectral import no_filter
from tests.model.lively import graph_and_params
from tests.tiny import tiny

jitted_rotate = jax.jit(rotate)


def mixer():
    config = tiny(model__mixer="attention", curriculum__rule="none", model__attention_heads=2).model
    graph, params = graph_and_params(config)
    return nnx.merge(graph, {**params, "blocks": jax.tree.map(lambda leaf: leaf[0], params["blocks"])}).blocks.mixer


def numpy_rotate(x_THE):
    T, H, E = x_THE.shape
    out = np.zeros_like(x_THE)
    for t in range(T):
        for i in range(E // 2):
            angle = t / 10000 ** (2 * i / E)
            a, b = x_THE[t, :, i], x_THE[t, :, i + E // 2]
            out[t, :, i], out[t, :, i + E // 2] = (
                a * np.cos(angle) - b * np.sin(angle),
                b * np.cos(angle) + a * np.sin(angle),
            )
    return out


def test_it_equals_attention_written_out():
    layer = mixer()
    z = np.random.default_rng(0).normal(size=(1, 20, 16)).astype(np.float32)
    q, k, v = (
        (z[0].astype(np.float64) @ np.asarray(w.kernel[...], np.float64)).reshape(20, 2, 8)
        for w in (layer.w_q, layer.w_k, layer.w_v)
    )
    q, k = numpy_rotate(q), numpy_rotate(k)
    out = np.zeros((20, 2, 8))
    for t in range(20):
        for h in range(2):
            scores = k[: t + 1, h] @ q[t, h] / np.sqrt(8)
            weights = np.exp(scores - scores.max())
            out[t, h] = weights / weights.sum() @ v[: t + 1, h]
    expected = out.reshape(20, 16) @ np.asarray(layer.w_o.kernel[...], np.float64)
    found = jax.jit(lambda z: layer(z, no_filter(32)))(z)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_scores_depend_on_distance_only():
    x, y = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    a, b = (np.asarray(jitted_rotate(np.tile(z, (2, 40, 3, 1)))) for z in (x, y))
    scores = np.einsum("tE,sE->ts", a[0, :, 0], b[0, :, 0])
    np.testing.assert_allclose(scores[5, 2], scores[25, 22], atol=1e-5)
    assert abs(scores[5, 2] - scores[5, 4]) > 1e-3


def test_rotation_keeps_lengths():
    x = np.random.default_rng(0).normal(size=(2, 40, 3, 8)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(jitted_rotate(x), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("size", ({"d_model": 512, "n_layers": 6}, {"d_model": 128, "n_layers": 4}))
def test_the_attention_config_has_as_many_parameters_as_aligned(size):
    counts = []
    for config in (aligned, attention):
        values = config.get_config()
        values.model.update(size)
        counts.append(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(build(read_config(values).model)[1])))
    assert counts[0] == pytest.approx(counts[1], rel=0.01)
