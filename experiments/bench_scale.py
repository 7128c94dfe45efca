"""Suite `scale` of `experiments.bench`: the compiled step on eight simulated devices, by mesh.

Simulated devices share the cores of one machine, so nothing is timed here: what counts is what the compiler made, the
memory of a device and what is sent between devices. A process of its own, since their number is fixed at start-up.
"""

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from experiments.interleaved import Row
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.training.optimizer import build_optimizer_of

_DEVICES = 8
_MESHES = ((1, 1), (8, 1), (2, 4))
_COLLECTIVES = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def bench_scale(rounds: int) -> list[Row]:
    """Memory of one device and collectives of one step, for AdamW and Muon; `rounds` has no use here."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={_DEVICES}".strip()
    child = subprocess.run(
        [sys.executable, "-m", "experiments.bench_scale"],
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout)


def _row(optimizer: str, data: int, fsdp: int) -> Row:
    from configs import small
    from fftlm_jax.config.reading import read_config
    from fftlm_jax.model import build
    from fftlm_jax.training import run_parts
    from fftlm_jax.training.compiler import StepVariant

    values = small.get_config()
    values.mesh.update(data=data, fsdp=fsdp, fsdp_min_size=1 << 12)
    values.optim.name = optimizer
    config = read_config(values, with_data=False)
    mesh = run_parts.build_mesh(config)
    tx = build_optimizer_of(config, mesh)
    variant = StepVariant(low_pass_at(config, build_controller(config).cutoff), config.train.accum_steps)
    with run_parts.build_compiler(config, build(config.model)[0], tx, mesh) as compiler:
        run = compiler.get(variant).run
    memory, found = run.memory_analysis(), collections.Counter(re.findall(_COLLECTIVES, run.as_text()))
    return {
        "case": f"configs/small.py, {optimizer}, mesh data {data} x fsdp {fsdp}",
        "state and data of a device, MiB": round(memory.argument_size_in_bytes / 2**20, 2),
        "temporaries of a device, MiB": round(memory.temp_size_in_bytes / 2**20, 1),
        **{kind: found[kind] for kind in sorted(found)},
    }


if __name__ == "__main__":
    json.dump([_row(optimizer, *mesh) for optimizer in ("adamw", "muon") for mesh in _MESHES], sys.stdout)
