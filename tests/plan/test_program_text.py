# ruff: noqa: E501
"""The reader of compiled programs, on small texts in the words of three compilers and on programs of this one."""

import os
import subprocess
import sys

import pytest

from fftlm_jax.plan.program_text import array_bytes, collectives_of, dimensions, read_program
from tests.tiny import ROOT

# A loop that runs 6 times (noted), within one that runs 8 times (noted), and a sum at the end.
GPU = """\
HloModule jit_step, is_scheduled=true

%inner (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %ag-start = (f32[2,8]{1,0}, f32[4,8]{1,0}) all-gather-start(%x), channel_id=1, replica_groups={{0,1}}, metadata={op_name="jit(step)/jvp()/while/body/gather"}
  %ag-done = f32[4,8]{1,0} all-gather-done(%ag-start)
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %ag-done)
}

%outer (p: (s32[])) -> (s32[]) {
  %w = (s32[], f32[4,8]) while(%t0), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"6"}}
  %rs = f32[2,8]{1,0} reduce-scatter(%w1), channel_id=1, replica_groups=[4,2]<=[8], metadata={op_name="jit(step)/transpose(jvp())/x"}
  ROOT %t = (s32[]) tuple(%i)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[]) while(%t0), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"8"}}
  %ar-start = f32[100]{0} all-reduce-start(%c), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %ar-done = f32[100]{0} all-reduce-done(%ar-start)
  ROOT %r = f32[4]{0} copy(%ar-done)
}
"""

# A TPU notes no trip counts, tiles its layouts, and writes one asynchronous collective into several fusions.
TPU = """\
HloModule jit_step

%cond (p: (s32[], u32[])) -> pred[] {
  %bound = u32[]{:T(128)} constant(8)
  %p = (s32[]{:T(128)}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (p: (s32[], u32[])) -> (s32[], u32[]) {
  %one = u32[]{:T(128)} constant(1)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %half = u32[]{:T(128)} add(%i, %one)
  %next = u32[]{:T(128)} add(%half, %one)
  %cp = (bf16[128,256]{1,0:T(8,128)(2,1)S(1)}, bf16[128,256]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=7
  ROOT %t = (s32[]{:T(128)}, u32[]{:T(128)}) tuple(%j, %next)
}

%fusion.1 (p: bf16[16,64]) -> bf16[64,64] {
  %ag.1 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, dimensions={0}
}

%fusion.2 (p: bf16[16,64]) -> bf16[64,64] {
  %ag.2 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, dimensions={0}
}

ENTRY %main.1_spmd (a: f32[4]) -> f32[4] {
  %w = (s32[]{:T(128)}, u32[]{:T(128)}) while(%t), condition=%cond, body=%body
  %f1 = bf16[64,64]{1,0:T(8,128)(2,1)} fusion(%a), kind=kOutput, calls=%fusion.1
  %f2 = bf16[64,64]{1,0:T(8,128)(2,1)} fusion(%a), kind=kOutput, calls=%fusion.2
  ROOT %all = (f32[6,512]{1,0:T(8,128)S(1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%x, %y), channel_id=9, to_apply=%add
}
"""


def facts(text, **options):
    return [(c.kind, c.size, c.times, c.moved) for c in collectives_of(text, **options)]


def test_loops_within_loops_multiply_and_reduced_parts_count_whole():
    assert facts(GPU, distinct_channels=False) == [
        ("all-gather", 4 * 8 * 4, 48, 4 * 8 * 4 * 48),
        ("reduce-scatter", 2 * 2 * 8 * 4, 8, 2 * 2 * 8 * 4 * 8),
        ("all-reduce", 400, 1, 400),
    ]


def test_a_tpu_s_loops_are_counted_by_their_bound_and_step_and_channels_once():
    assert facts(TPU, distinct_channels=True) == [
        ("collective-permute", 128 * 256 * 2, 4, 128 * 256 * 2 * 4),
        ("all-gather", 64 * 64 * 2, 1, 64 * 64 * 2),
        ("all-reduce", 6 * 512 * 4 + 4, 1, 6 * 512 * 4 + 4),
    ]
    assert len(facts(TPU, distinct_channels=False)) == 4


@pytest.mark.parametrize(
    "line,size",
    (
        (
            "f32[2,8]{1,0} reduce-scatter(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
            4 * 64,
        ),
        ("f32[2,8]{1,0} reduce-scatter(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}", 4 * 64),
        (
            "f32[2,8]{1,0} reduce-scatter(%x), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}",
            4 * 64,
        ),
        ("f32[2,8]{1,0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, dimensions={0}", 8 * 64),
        ("((f32[9]{0}, f32[3]{0}), (f32[3]{0}, f32[1]{0})) reduce-scatter-start(%x, %y), dimensions={0}", 48),
        ("((f32[9]{0}), (f32[27]{0}), u32[]) all-gather-start(%x), dimensions={0}", 108),
    ),
)
def test_the_size_of_what_a_group_of_devices_reduces_or_gathers(line, size):
    (found,) = collectives_of(
        f"ENTRY %main (a: f32[4]) -> f32[4] {{\n  ROOT %c = {line}\n}}\n", distinct_channels=False
    )
    assert found.size == size


def test_both_branches_of_a_condition_count():
    text = """\
%yes (p: f32[4]) -> f32[4] {
  %a = f32[4]{0} all-reduce(%p), channel_id=1, to_apply=%add
}
%no (p: f32[4]) -> f32[4] {
  %b = f32[8]{0} all-reduce(%p), channel_id=2, to_apply=%add
}
ENTRY %main (p: pred[]) -> f32[4] {
  ROOT %c = f32[4]{0} conditional(%p, %x, %y), branch_computations={%yes, %no}
}
"""
    assert [moved for *_, moved in facts(text, distinct_channels=False)] == [16, 32]


def test_shapes():
    assert array_bytes("(f32[2,3]{1,0}, bf16[5]{0:T(8,128)(2,1)}, pred[], s4[3])") == 24 + 10 + 1 + 1
    assert dimensions("bf16[1,32,128]{2,1,0}") == (1, 32, 128) and dimensions("f32[]") == ()


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("module @jit_step {}")


REAL = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from fftlm_jax.plan.program_text import collectives_of

mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

def f(w, u):
    def layer(u, w):
        whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jnp.tanh(u @ whole), None
    return jnp.sum(jax.lax.scan(layer, u, w)[0])

w = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "x")))
u = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=NamedSharding(mesh, P("x")))
for c in collectives_of(jax.jit(f).lower(w, u).compile().as_text(), distinct_channels=False):
    print(c.kind, c.size, c.times)
"""


def test_a_program_of_this_compiler():
    """Four devices gather each of 5 matrices in a loop, and add up one number."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", REAL], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[:-1]) == ["all-gather 4096 5", "all-reduce 4 1"]
