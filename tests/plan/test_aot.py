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
}
MACHINES = ("v5e-4", "v6e-16", "h100-1", "h100-8")


def values_of(way, dtype, remat):
    name, overrides = WAYS[way]
    c = import_module(f"configs.{name}").get_config()
    c.model.update(d_model=256, n_layers=3, conv_heads=4, dtype=dtype, remat=remat, seq_len=256)
    c.model.attention_heads = 4
    c.curriculum.ladder = ("full",)
    c.train.update(batch_size=16, accum_steps=2)
    c.mesh.fsdp_min_size = 2**10
    c.compile_cache = ""
    for key, value in overrides.items():
        section, last = key.split(".")
        c[section][last] = value
    return c


@pytest.mark.parametrize("remat", ("none", "blocks"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", MACHINES)
def test_a_step_compiles_and_sends_nothing_unexpected(target, way, dtype, remat):
    from fftlm_jax.config.reading import read_config
    from fftlm_jax.plan.plan_run import _plan_config

    if way == "fft" and dtype == "bfloat16":
        pytest.skip("the config refuses it: an FFT is float32")
    if way == "muon_1b, sharded" and target == "h100-1":
        pytest.skip("one device shards nothing")
    machine = machines.machine_named(target)
    try:
        machines.set_environment(machine, os.environ)
    except UsageError as missing:
        pytest.skip(str(missing))
    jax.config.update("jax_enable_compilation_cache", False)  # Which cannot load programs for another machine.
    config = read_config(values_of(way, dtype, remat), with_data=False)
    plan = _plan_config(config, machine, machines.devices_of(machine), only_last_step=True)
    (program,) = plan.programs
    assert plan.fits and not program.findings.holds_float64
    traffic = plan.traffic[program.name]
    assert not [row for row in traffic if row.purpose == "activations"], traffic
    is_sharded = "sharded" in way
    moved = {purpose: sum(r.moved for r in traffic if r.purpose == purpose) for purpose in ("gradients", "parameters")}
    if not is_sharded:
        assert moved["parameters"] == 0, traffic
    if machine.devices > 1 and not is_sharded:
        # Once a step, in float32.
        assert 4 * plan.parameters <= moved["gradients"] < 4 * plan.parameters * 1.01 + 1000, traffic
