"""What stays in float32 when the matrix products are in bfloat16: weights, transforms, softmax, sums, the optimizer."""

import jax
import jax.numpy as jnp
import pytest

from fftlm_jax.model import build
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.training import run_parts
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.step import make_train_step
from tests.tiny import tiny

# Where a bfloat16 would lose digits that matter: of softmax and norms, of sums over many terms, of transforms.
SENSITIVE = {"exp", "log", "rsqrt", "sqrt", "fft", "reduce_sum", "cumsum", "reduce_max", "argmax", "scatter-add"}


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def step_jaxpr(**overrides):
    config = tiny(**overrides)
    tx = build_optimizer_of(config)
    step = make_train_step(config, build(config.model)[0], tx, low_pass_at(config, 17))
    state, *arguments = run_parts.step_arguments(config, tx, 2)
    return state, list(equations(jax.make_jaxpr(step)(state, *arguments).jaxpr))


@pytest.mark.parametrize(
    "overrides", ({}, {"model__memory": "aligned", "model__memory_piece": 4}), ids=("plain", "memory")
)
def test_a_bfloat16_step_keeps_what_matters_in_float32(overrides):
    state, eqns = step_jaxpr(model__dtype="bfloat16", **overrides)
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state)), "master weights and moments"
    low = [e for e in eqns if any(getattr(v.aval, "dtype", None) == jnp.bfloat16 for v in (*e.invars, *e.outvars))]
    assert sum(e.primitive.name == "dot_general" for e in low) >= 10, "products are in bfloat16"
    names = {e.primitive.name for e in low if e.primitive.name in SENSITIVE}
    assert not names, names


def test_nothing_is_bfloat16_or_float64_unless_asked_for():
    _, eqns = step_jaxpr()
    dtypes = {str(getattr(v.aval, "dtype", "")) for e in eqns for v in e.outvars}
    assert "float32" in dtypes and not dtypes & {"bfloat16", "float16", "float64", "complex128"}
