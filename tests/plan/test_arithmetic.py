"""FLOPs of traced programs: by hand, by loops, by devices, and as the model's own count has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from fftlm_jax.model import build
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.model.parameters import flops_per_byte
from fftlm_jax.plan.arithmetic import flops_of, kept_for_backward
from fftlm_jax.runtime.platform import tracing_for
from fftlm_jax.training.compiler import StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.run_parts import trace_step
from tests.tiny import tiny

A, W = jnp.ones((3, 4, 5)), jnp.ones((7, 5, 5))


def flops(function, *arguments):
    return flops_of(jax.make_jaxpr(function)(*arguments))


def test_products_by_hand():
    assert flops(lambda a: a @ jnp.ones((5, 6)), A) == 2 * 3 * 4 * 5 * 6
    assert flops(lambda a: jnp.einsum("bij,bkj->bik", a, a), A) == 2 * 3 * 4 * 4 * 5
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    assert flops(convolve, jnp.ones((2, 16, 3)), jnp.ones((5, 3, 8))) == 2 * (2 * 16 * 8) * (5 * 3)
    assert flops(jnp.fft.rfft, jnp.ones((6, 64))) == 2.5 * 6 * 64 * 6
    assert flops(lambda x: jnp.fft.irfft(x, n=64), jnp.ones((6, 33), complex)) == 2.5 * 6 * 64 * 6


def test_loops_count_as_often_as_they_run_and_conditions_by_their_dearest_branch():
    loop = lambda a, w: jax.lax.scan(lambda a, w: (jnp.tanh(a @ w), None), a, w)[0]
    one = 2 * 3 * 4 * 5 * 5
    assert flops(loop, A, W) == 7 * one
    assert flops(jax.jit(jax.checkpoint(loop)), A, W) == 7 * one
    assert flops(lambda a: jax.lax.cond(a[0, 0, 0] > 0, lambda a: a @ W[0] @ W[1], lambda a: a @ W[0], a), A) == 2 * one
    gradient = flops(jax.grad(lambda w, a: jnp.sum(loop(a, w))), W, A)
    assert gradient == 3 * 7 * one, "forward, and for the inputs and the weights of each"
    again = flops(jax.grad(lambda w, a: jnp.sum(jax.checkpoint(loop)(a, w))), W, A)
    assert again > gradient


def test_what_each_device_does_for_itself_counts_for_all():
    mesh = AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("x")
    with jax.sharding.use_abstract_mesh(mesh):
        own = jax.shard_map(lambda a: a @ jnp.ones((5, 6)), in_specs=spec, out_specs=spec, check_vma=False)
        assert flops(own, jnp.ones((8, 5))) == 2 * 8 * 5 * 6


def test_loops_hand_stacks_to_the_backward_pass():
    loop = lambda w, a: jnp.sum(jax.lax.scan(lambda a, w: (jnp.sin(a * w), None), a, w)[0])
    w, a = jnp.ones((7, 20)), jnp.ones(20)
    kept = kept_for_backward(jax.make_jaxpr(jax.grad(loop, argnums=(0, 1)))(w, a))
    assert kept >= 7 * 20 * 4, "at least the argument of each sine"
    assert kept_for_backward(jax.make_jaxpr(loop)(w, a)) == 0
    layer = lambda a, w: (jnp.sin(jnp.sin(a * w)), None)
    over = lambda layer: lambda w, a: jnp.sum(jax.lax.scan(layer, a, w)[0])
    sizes = [kept_for_backward(jax.make_jaxpr(jax.grad(over(f)))(w, a)) for f in (jax.checkpoint(layer), layer)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("overrides", ({}, {"model__mixer": "attention", "curriculum__rule": "none"}))
def test_a_step_takes_about_what_the_mathematics_of_its_model_does(overrides):
    """Convolutions as products take more than their taps, attention twice what a causal one needs."""
    config = tiny(model__d_model=64, model__n_layers=3, **overrides)
    graph, params = build(config.model)
    variant = StepVariant(low_pass_at(config, 5), config.train.accum_steps)
    with tracing_for("tpu"):
        counted = flops_of(trace_step(config, graph, build_optimizer_of(config), variant).jaxpr)
    text = config.train.accum_steps * config.train.batch_size * config.model.seq_len
    assert 0.9 < counted / (flops_per_byte(config, params) * text) < 1.7
    assert np.isfinite(counted)
