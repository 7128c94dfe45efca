"""Leaves seen as matrices and back, and settings by value, path and tree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import MatrixLayout, PerPath, from_matrices, resolve_layouts, to_matrices
from fftlm_jax.optim.leaves import per_leaf
from tests.optim.matrices import normal

CASES = (
    # name, shape, layout, shapes of the matrices.
    ("default", (4, 6), MatrixLayout(), ((4, 6),)),
    ("stack of layers", (3, 4, 6), MatrixLayout(), ((3, 4, 6),)),
    ("two batch axes", (2, 3, 4, 6), MatrixLayout(), ((2, 3, 4, 6),)),
    ("output first", (6, 4), MatrixLayout(1, 0), ((4, 6),)),
    ("convolution HWIO", (3, 3, 4, 6), MatrixLayout((0, 1, 2), 3), ((36, 6),)),
    ("heads in front of their width", (4, 2, 3), MatrixLayout(0, (1, 2)), ((4, 6),)),
    ("batch axis in the middle", (4, 3, 6), MatrixLayout(0, 2), ((3, 4, 6),)),
    ("two heads", (4, 6), MatrixLayout(blocks=2), ((2, 4, 3),)),
    ("two heads of a stack", (5, 4, 6), MatrixLayout(blocks=2), ((5, 2, 4, 3),)),
    ("heads of an output projection", (6, 4), MatrixLayout(blocks=3, block_axis="in"), ((3, 2, 4),)),
    ("grouped-query QKV", (5, 4, 8), MatrixLayout(blocks=(4, 2, 2)), ((5, 4, 4), (5, 4, 2), (5, 4, 2))),
)


@pytest.mark.parametrize("name,shape,layout,expected", CASES, ids=[case[0] for case in CASES])
def test_there_and_back(name, shape, layout, expected):
    x = normal(*shape)
    matrices = to_matrices(x, layout)
    assert tuple(m.shape for m in matrices) == expected
    np.testing.assert_array_equal(from_matrices(matrices, layout, shape), x)


def test_the_matrix_is_the_one_that_multiplies():
    kernel, x = normal(3, 3, 4, 6), normal(3, 3, 4, seed=1)
    (matrix,) = to_matrices(kernel, MatrixLayout((0, 1, 2), 3))
    np.testing.assert_allclose(x.reshape(-1) @ matrix, jnp.einsum("hwi,hwio->o", x, kernel), rtol=1e-5, atol=1e-5)
    heads = to_matrices(kernel, MatrixLayout((0, 1, 2), 3, blocks=2))[0]
    np.testing.assert_array_equal(heads[1], matrix[:, 3:])


@pytest.mark.parametrize(
    "shape,layout,message",
    (
        ((4,), MatrixLayout(), r"mlp/bias has shape \(4,\)"),
        ((4, 6), MatrixLayout(0, 0), "overlap"),
        ((4, 6), MatrixLayout(0, 2), "not all among the 2 axes"),
        ((4, 6), MatrixLayout(blocks=4), "does not divide"),
        ((4, 6), MatrixLayout(blocks=(3, 2)), "do not add up to 6"),
    ),
)
def test_errors_name_the_leaf(shape, layout, message):
    with pytest.raises(ValueError, match=message) as error:
        to_matrices(jnp.ones(shape), layout, "mlp/bias")
    assert "mlp/bias" in str(error.value)


TREE = {"attn": {"qkv": jnp.ones((2, 3)), "out": jnp.ones((3, 2))}, "mlp": jnp.ones((2, 2))}


def test_layouts_by_value_path_and_tree():
    dims, heads = optax.contrib.MuonDimensionNumbers(0, 1), MatrixLayout(blocks=3)
    default, ours = MatrixLayout(), MatrixLayout(0, 1)
    # Leaves come in the order of their keys: attn/out, attn/qkv, mlp.
    assert resolve_layouts(None, TREE) == [default] * 3
    assert resolve_layouts(dims, TREE) == [ours] * 3
    assert resolve_layouts({"qkv": heads, ".*": dims}, TREE) == [ours, heads, ours]
    assert resolve_layouts(PerPath(lambda path: heads if path == "mlp" else None), TREE) == [default, default, heads]
    assert resolve_layouts({"attn": {"qkv": heads, "out": None}, "mlp": dims}, TREE) == [default, heads, ours]
    assert resolve_layouts(lambda tree: jax.tree.map(lambda _: dims, tree), TREE) == [ours] * 3


def test_masked_leaves_take_no_value():
    masked = {"attn": {"qkv": optax.MaskedNode(), "out": jnp.ones((3, 2))}, "mlp": optax.MaskedNode()}
    is_number = lambda value: isinstance(value, float)
    assert per_leaf({"attn": {"qkv": 1.0, "out": 2.0}, "mlp": 3.0}, masked, is_number) == [2.0]
    assert per_leaf({"attn": 1.0}, masked, is_number) == [1.0]
    assert per_leaf(5.0, {}, is_number) == []


def test_uncovered_paths_are_named():
    with pytest.raises(ValueError, match="matches the leaves mlp"):
        resolve_layouts({"attn": MatrixLayout()}, TREE)
