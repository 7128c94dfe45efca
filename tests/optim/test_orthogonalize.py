"""Grouping leaves into stacks changes nothing but the number of products; sharded stacks need no communication."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import MatrixLayout, orthogonalize, polar
from fftlm_jax.optim.orthogonalize import map_stacked
from tests.conftest import ROOT
from tests.optim.matrices import normal

TREE = {
    "a": normal(4, 6),
    "b": normal(3, 4, 6, seed=1),
    "c": normal(6, 4, seed=2),
    "d": normal(2, 2, 4, 6, seed=3),
    "e": np.asarray(normal(4, 6, seed=4)).astype(jnp.bfloat16),
    "f": normal(0, 4, 6),
}
jitted_polar = jax.jit(polar, static_argnums=1)


@pytest.mark.parametrize("max_stack", (None, 3))
def test_every_leaf_gets_its_own_polar_factor(max_stack):
    out, _ = jax.jit(orthogonalize("ns5", max_stack=max_stack).update)(TREE, optax.EmptyState())
    for name, x in TREE.items():
        assert out[name].dtype == x.dtype and out[name].shape == x.shape
        np.testing.assert_allclose(*(np.float32(y) for y in (out[name], jitted_polar(x, "ns5"))), atol=1e-5)


def test_calls_are_grouped_by_shape_and_capped():
    calls = []
    arrays = jax.tree.leaves(TREE)
    out = map_stacked(lambda stack: calls.append(stack.shape) or stack, arrays, max_stack=5)
    assert sorted(calls) == [(1, 4, 6), (1, 6, 4), (3, 4, 6), (5, 4, 6)]
    for x, y in zip(arrays, out):
        np.testing.assert_array_equal(x, y)


def test_layouts_reach_the_polar_factor():
    kernel = np.asarray(normal(3, 3, 2, 8))
    tx = orthogonalize(layout=MatrixLayout((0, 1, 2), 3, blocks=2))
    out, _ = jax.jit(tx.update)({"k": kernel}, optax.EmptyState())
    expected = jitted_polar(kernel.reshape(18, 8)[:, 4:], "polar_express")
    np.testing.assert_allclose(np.asarray(out["k"]).reshape(18, 8)[:, 4:], expected, atol=1e-5)


def test_vectors_are_named():
    with pytest.raises(ValueError, match=r"norm/scale has shape \(4,\)"):
        orthogonalize().update({"norm": {"scale": jnp.ones(4)}}, optax.EmptyState())


SHARDED = """
import collections, re
import jax, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from fftlm_jax.optim import orthogonalize, scale_by_muon, with_spectral
from tests.optim.matrices import normal, relative

mesh = Mesh(np.array(jax.devices()), ("data",))
on = lambda *axes: NamedSharding(mesh, P(*axes))
G, W = {"w": normal(16, 8, 24)}, {"w": normal(16, 8, 24, seed=1)}
TWO_STEPS = ((1.5, -0.5, 0.0),) * 2  # To compile quickly.
stacked = orthogonalize(TWO_STEPS, stack_sharding=on("data"))
TX = {
    "plain": orthogonalize(TWO_STEPS),
    "constrained": stacked,
    "spectral": with_spectral(stacked, 0.3, normalize="frobenius"),
}

alone = lambda tx: jax.jit(lambda g, w: tx.update(g, tx.init(w), w)[0])(G, W)["w"]
EXPECTED = {"plain": alone(TX["plain"]), "spectral": alone(TX["spectral"])}
EXPECTED["constrained"] = EXPECTED["plain"]

def collectives(name, sharding):
    tx = TX[name]
    g, w = (jax.device_put(x, sharding) for x in (G, W))
    out = {"w": sharding}
    run = jax.jit(lambda g, w: tx.update(g, tx.init(w), w)[0], out_shardings=out)
    compiled = run.lower(g, w).compile()
    error = relative(compiled(g, w)["w"], EXPECTED[name])
    assert error <= 4e-6, error
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    names = re.findall(rf"^ *\\S+ = .*? ({kinds})(?:-start)?\\(", compiled.as_text(), re.MULTILINE)
    return dict(collections.Counter(names))

for name, tx, sharding in (
    ("stack", "plain", on("data")),
    ("stack_spectral", "spectral", on("data")),
    ("rows", "plain", on(None, "data")),
    ("columns", "plain", on(None, None, "data")),
    ("rows_constrained", "constrained", on(None, "data")),
    ("columns_constrained", "constrained", on(None, None, "data")),
):
    print(name, sorted(collectives(tx, sharding).items()))

odd = {"w": normal(3, 8, 24), "v": normal(8, 24, seed=2)}
run = jax.jit(lambda g: stacked.update(g, optax.EmptyState())[0])
plain = jax.jit(lambda g: TX["plain"].update(g, optax.EmptyState())[0])(odd)
odd_out = run(odd)
assert all(np.abs(np.asarray(odd_out[k]) - np.asarray(plain[k])).max() <= 4e-6 for k in odd)

by_shards = jax.shard_map(lambda g: TX["plain"].update(g, optax.EmptyState())[0], mesh=mesh, in_specs=P("data"),
                          out_specs=P("data"))
assert np.abs(np.asarray(jax.jit(by_shards)(G)["w"]) - np.asarray(EXPECTED["plain"])).max() <= 4e-6

g, w = (jax.device_put(x, on("data")) for x in (G, W))
tx = scale_by_muon(alpha=0.3, neuron_beta2=0.9, method=((1.5, -0.5, 0.0),), stack_sharding=on("data"))
update, states = jax.jit(tx.update), [jax.jit(tx.init)(w)]
for _ in range(3):
    states.append(update(g, states[-1], w)[1])
is_placed = lambda x: x.ndim > 0 and x.sharding.is_equivalent_to(on("data"), x.ndim)
placement = lambda state: list(map(is_placed, jax.tree.leaves(state)))
assert placement(states[1]) == placement(states[2]) == placement(states[3]) and sum(placement(states[1])) > 1
print("padded, shard_map and states ok")
"""


def test_sharded_updates_are_equal_and_stacks_need_no_collectives():
    flags = f"--xla_force_host_platform_device_count=8 {os.environ['XLA_FLAGS']}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=ROOT, env=env, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert counts["stack"] == counts["stack_spectral"] == "[]"
    for name in ("rows", "columns"):
        assert "all-gather" in counts[name] or "all-reduce" in counts[name], counts
        kinds = {kind for kind, _ in eval(counts[f"{name}_constrained"])}
        assert kinds == {"all-to-all"}, counts
