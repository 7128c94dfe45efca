"""Products in bfloat16: operands are rounded, sums and results are not, forward and backward, whatever lies how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.model.layers import Projection, product
from fftlm_jax.runtime.platform import multiply, tracing_for
from tests.model.test_precision import step_jaxpr

LOW, HIGH = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """To bfloat16 and back, as float64."""
    return np.asarray(jnp.asarray(x, LOW), np.float64)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, KERNEL, DY = normal(300, 24), normal(24, 17, seed=1), normal(300, 17, seed=2)


@pytest.mark.parametrize("inputs", (HIGH, LOW), ids=str)
def test_results_and_both_gradients_are_those_of_rounded_operands_exactly_added(inputs):
    """To 1e-6 of the largest, where a result that is rounded to bfloat16 is off by 1e-3."""

    @jax.jit
    def all_of(x, kernel, dy):
        y, transpose = jax.vjp(lambda x, kernel: product(x, kernel, LOW), x, kernel)
        return y, *transpose(dy)

    y, dx, dkernel = all_of(jnp.asarray(X, inputs), KERNEL, DY)
    assert y.dtype == dkernel.dtype == HIGH and dx.dtype == inputs
    x, kernel, dy = map(rounded, (X, KERNEL, DY))
    found = {"y": (y, x @ kernel), "dkernel": (dkernel, x.T @ dy)}
    if inputs == HIGH:
        found["dx"] = (dx, dy @ kernel.T)
    for name, (ours, exact) in found.items():
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-6 * np.abs(exact).max(), err_msg=name)


def test_many_terms_are_added_up_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    x, kernel = jnp.ones((3, 5000)), jnp.ones((5000, 2))
    y, transpose = jax.vjp(lambda x, kernel: product(x, kernel, LOW), x, kernel)
    assert (np.asarray(y) == 5000).all()
    _, dkernel = jax.vjp(lambda x, kernel: product(x, kernel, LOW), x.T, kernel[:3])[1](jnp.ones((5000, 2)))
    assert (np.asarray(dkernel) == 5000).all() and (np.asarray(transpose(jnp.ones((3, 2)))[0]) == 2).all()


@pytest.mark.parametrize("batch", ((), (3,)), ids=str)
@pytest.mark.parametrize("shape", ((64, 128, 96), (1, 128, 128), (5, 3, 7), (1, 1, 1)), ids=str)
def test_operands_and_results_may_lie_by_columns(shape, batch):
    """Transposed results of such products compile without the copy that is made of them, and do not run."""
    M, K, N = shape
    a, b = normal(*batch, K, M), normal(*batch, N, K, seed=1)

    @jax.jit
    def transposed(a, b):
        return jnp.swapaxes(multiply(jnp.swapaxes(a, -1, -2), jnp.swapaxes(b, -1, -2)), -1, -2)

    exact = rounded(b) @ rounded(a)
    found = transposed(jnp.asarray(a, LOW), jnp.asarray(b, LOW))
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_gradients_of_gradients_are_those_of_the_plain_product():
    """What curvature is measured with: reverse over reverse, also inside a loop and over a batch of vectors."""

    def curvature(multiplied, v):
        loss = lambda k: jnp.sum(jnp.tanh(multiplied(0.1 * X[:40], k)) ** 2)
        return jax.grad(lambda k: jnp.vdot(jax.grad(loss)(k), v))(jnp.asarray(KERNEL))

    vectors = normal(2, 24, 17, seed=3)
    ours = jax.jit(jax.vmap(lambda v: curvature(lambda x, k: product(x, k, LOW), v)))(vectors)
    plain = jax.jit(jax.vmap(lambda v: curvature(jnp.matmul, v)))(vectors)
    assert np.linalg.norm(ours - plain) < 0.02 * np.linalg.norm(plain)


def test_float32_is_the_plain_product():
    assert (np.asarray(product(jnp.asarray(X), KERNEL, HIGH)) == np.asarray(jnp.matmul(X, KERNEL))).all()


@pytest.mark.parametrize("overrides", ({}, {"model__mixer": "attention", "curriculum__rule": "none"}), ids=str)
def test_every_product_of_a_step_in_bfloat16_is_added_up_in_float32(overrides):
    _, eqns = step_jaxpr(model__dtype="bfloat16", optim__name="muon", optim__polar_dtype="bfloat16", **overrides)
    products = [e for e in eqns if e.primitive.name == "dot_general" and e.invars[0].aval.dtype == LOW]
    rounded_at_once = [e for e in products if e.outvars[0].aval.dtype != HIGH]
    # The library's attention rounds the products with its weights; all else is ours.
    assert len(products) > 20 and len(rounded_at_once) <= (3 if "model__mixer" in overrides else 0)


def test_between_products_numbers_are_float32_on_cpu_and_bfloat16_elsewhere():
    """The sum of the residual stream is told by its shape: [2, 32, 16] in a tiny model."""

    def dtypes_of_sums():
        _, eqns = step_jaxpr(model__dtype="bfloat16", model__conv_method="toeplitz")
        sums = [e.outvars[0].aval for e in eqns if e.primitive.name == "add"]
        return {str(aval.dtype) for aval in sums if aval.shape == (2, 32, 16)}

    assert dtypes_of_sums() == {"float32"}
    with tracing_for("tpu"):
        assert "bfloat16" in dtypes_of_sums()


def test_a_projection_gives_what_it_is_given():
    layer = Projection(24, 17, 1.0, LOW, nnx.Rngs(0))
    assert layer(jnp.asarray(X)).dtype == HIGH and layer(jnp.asarray(X, LOW)).dtype == LOW
    assert layer(jnp.zeros((2, 3, 24))).shape == (2, 3, 17)
