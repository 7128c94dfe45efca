"""Shape factors against the formulas of their sources and against optax."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import _muon as oracle

from fftlm_jax.optim import MatrixLayout, scale_by_matrix_shape, shape_factor

EMPTY = optax.EmptyState()


@pytest.mark.parametrize(
    "style,fan_in,fan_out,expected",
    (
        ("keller", 4, 16, 2.0),
        ("keller", 16, 4, 1.0),
        ("spectral", 4, 16, 2.0),
        ("spectral", 16, 4, 0.5),
        ("rms", 4, 100, 2.0),
        ("rms", 100, 4, 2.0),
        ("none", 4, 16, 1.0),
    ),
)
def test_factors(style, fan_in, fan_out, expected):
    assert shape_factor(fan_in, fan_out, style) == pytest.approx(expected)
    out, _ = scale_by_matrix_shape(style).update({"w": jnp.ones((3, fan_in, fan_out))}, EMPTY)
    np.testing.assert_allclose(out["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("style,rms", (("keller", None), ("rms", 0.2)))
@pytest.mark.parametrize("shape", ((8, 32), (32, 8)))
def test_equal_to_optax(style, rms, shape):
    updates = {"w": jnp.ones(shape)}
    dims = {"w": optax.contrib.MuonDimensionNumbers()}
    theirs, _ = oracle.scale_by_shape(dims, rms).update(updates, EMPTY)
    np.testing.assert_allclose(scale_by_matrix_shape(style).update(updates, EMPTY)[0]["w"], theirs["w"], rtol=1e-6)


def test_fans_come_from_the_layout_and_blocks_count_alone():
    x = {"w": jnp.ones((3, 3, 4, 144))}
    conv = MatrixLayout((0, 1, 2), 3)
    assert float(scale_by_matrix_shape(layout=conv).update(x, EMPTY)[0]["w"][0, 0, 0, 0]) == 2.0
    heads = conv._replace(blocks=4)
    assert float(scale_by_matrix_shape("spectral", layout=heads).update(x, EMPTY)[0]["w"][0, 0, 0, 0]) == 1.0
    qkv = MatrixLayout(blocks=(8, 2))
    out, _ = scale_by_matrix_shape("spectral", layout=qkv).update({"w": jnp.ones((2, 10))}, EMPTY)
    np.testing.assert_allclose(out["w"][0], [2.0] * 8 + [1.0] * 2)


def test_an_unknown_style_is_an_error_at_once():
    with pytest.raises(ValueError, match="unknown shape style 'mup'"):
        scale_by_matrix_shape("mup")
