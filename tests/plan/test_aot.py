"""The programs that must compile for TPU and GPU, on machines with neither: ways to train x chips x dtypes x remat.

    pip install -e ".[dev,tpu,cuda-compile]" && python -m pytest -m aot -n 0 tests/plan/test_aot.py

One after the other, in a process that takes the machine's compiler; an hour on two cores, of which a TPU's compiler
takes most. The models are narrow: layers are rolled, so their number and width hardly change what is compiled.
"""

import os
from importlib import import_module

import jax
import pytest

from fftlm_jax.plan import machines
from fftlm_jax.runtime.errors import UsageError

pytestmark = [pytest.mark.aot, pytest.mark.timeout(1200)]

WAYS = {
    "aligned": ("aligned", {}),
    "next_byte": ("aligned", {"objective.name": "next_byte", "model.chunk": 1}),
    "attention": ("attention", {}),
    "memory polar": ("aligned", {"model.memory": "polar"}),
    "memory aligned": ("aligned", {"model.memory": "aligned"}),
    "muon_spectral": ("muon_spectral", {}),
    "muon_1b": ("muon_1b", {}),
    "muon_1b, sharded": ("muon_1b", {"mesh.fsdp": 2}),
    "fft": ("aligned", {"model.conv_method": "fft"}),
    "raft": ("raft", {"raft.batch_size": 32, "raft.accum_steps": 2}),
}
MACHINES = ("v5e-4", "v6e-16", "h100-1", "h100-8")


REMAT = ("none", "blocks")


def values_of(way, dtype, remat, **overrides):
    name, of_way = WAYS[way]
    c = import_module(f"configs.{name}").get_config()
    c.model.update(d_model=256, n_layers=3, conv_heads=4, attention_heads=4, dtype=dtype, remat=remat)
    c.model.seq_len = min(c.model.seq_len, 256)
    c.curriculum.ladder = ("full",)
    c.train.update(batch_size=16, accum_steps=2)
    c.mesh.fsdp_min_size = 2**10
    c.compile_cache = ""
    for key, value in {**of_way, **overrides}.items():
        section, last = key.split(".")
        c[section][last] = value
    return c


def plan_of(target, way, dtype, remat, **overrides):
    from fftlm_jax.config.reading import read_config
    from fftlm_jax.plan.plan_run import _plan_config

    try:
        machine = machines.prepare(target, os.environ)
    except UsageError as missing:
        pytest.skip(str(missing))
    jax.config.update("jax_enable_compilation_cache", False)  # Which cannot load programs for another machine.
    config = read_config(values_of(way, dtype, remat, **overrides), with_data=False)
    # Of fine-tuning also what samples, and its step with adapters as well as with all weights.
    return _plan_config(config, machine, machines.devices_of(machine), only_last_step=way != "raft")


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", MACHINES)
def test_a_program_compiles_and_sends_nothing_unexpected(target, way, dtype, remat):
    if way == "fft" and dtype == "bfloat16":
        pytest.skip("the config refuses it: an FFT is float32")
    if "sharded" in way and target == "h100-1":
        pytest.skip("one device shards nothing")
    plan = plan_of(target, way, dtype, remat)
    assert plan.fits and not any(program.findings.holds_float64 for program in plan.programs)
    traffic = [row for rows in plan.traffic.values() for row in rows]
    assert not [row for row in traffic if row.purpose == "activations"], traffic
    if way == "raft" or "sharded" in way or target == "h100-1":
        return
    moved = {purpose: sum(r.moved for r in traffic if r.purpose == purpose) for purpose in ("gradients", "parameters")}
    assert moved["parameters"] == 0, traffic
    # Once a step, in float32.
    assert 4 * plan.parameters <= moved["gradients"] < 4 * plan.parameters * 1.01 + 1000, traffic


@pytest.mark.parametrize("target", ("v5e-4", "h100-4"))
def test_sharded_steps_gather_layers_twice_exchange_muon_s_matrices_and_save_memory_by_remat(target):
    """The bounds that simulated devices hold in tests/parallel, in the programs of the real compilers."""
    deep = {"model.n_layers": 24, "mesh.fsdp": 4, "mesh.data": 1}
    plans = [plan_of(target, "muon_1b, sharded", "bfloat16", remat, **deep) for remat in REMAT]
    for plan in plans:
        (rows,) = plan.traffic.values()
        moved = lambda purpose, kind: sum(r.moved for r in rows if (r.purpose, r.kind) == (purpose, kind))
        gathered = lambda place: sum(r.moved for r in rows if (r.purpose, r.place) == ("parameters", place))
        assert 0 < moved("optimizer", "all-to-all") <= 0.5 * 4 * plan.parameters
        assert moved("optimizer", "all-gather") <= 0.1 * 4 * plan.parameters
        assert gathered("backward") >= 0.9 * gathered("forward") > 0
    without, with_remat = (plan.programs[0].findings.temporaries for plan in plans)
    assert 3 * with_remat <= without
