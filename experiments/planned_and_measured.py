"""Training steps on the accelerator at hand beside what their plans said of them: memory, seconds, and the MFU.

    python -m experiments.planned_and_measured --out=planned.json            on a machine with a GPU or a TPU
    python -m experiments.planned_and_measured --tiny --out=planned.json     anywhere, to try the script itself

Each case is planned in a process of its own, by the compiler for such a machine, then compiled and run here. A plan's
seconds are a bound; how far the step stays above it is the figure that is wanted. Where this machine's chips are none
that can be planned for, such as a CPU's, the plan is left out.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fftlm_jax.checkpoints.run_directory import environment
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Answer
from fftlm_jax.model import build
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.model.parameters import flops_per_byte, peak_flops
from fftlm_jax.parallel import distribute
from fftlm_jax.runtime.process import CommandParser, path_option, run_command
from fftlm_jax.training import run_parts
from fftlm_jax.training.batches import batch_stages, windows_sharding
from fftlm_jax.training.compiler import StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.step import events

_ROOT = Path(__file__).resolve().parent.parent
# What jax calls a chip, and how targets name it.
_KINDS = {"H100": "h100", "H200": "h200", "A100": "a100", "TPU v5 lite": "v5e", "TPU v6 lite": "v6e"}
_FULL = {"curriculum.rule": "none", "curriculum.ladder": ("full",), "train.batch_stages": (1,)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "aligned, float32": ("aligned", {}),
    "aligned, bfloat16": ("aligned", {"model.dtype": "bfloat16"}),
    "aligned, bfloat16, 32 windows": ("aligned", {"model.dtype": "bfloat16", "train.batch_size": 32}),
    "muon_spectral, bfloat16": ("muon_spectral", {"model.dtype": "bfloat16", "train.batch_size": 32}),
    "0.7 B under Muon": ("muon_1b", {"model.n_layers": 24, "train.batch_size": 64, "train.accum_steps": 1}),
}
_TINY = {"model.d_model": 32, "model.n_layers": 2, "model.conv_heads": 4, "model.seq_len": 128, "train.batch_size": 2}


def overrides_of(case: str, tiny: bool) -> dict[str, Any]:
    """The dotted overrides of a case."""
    return {**CASES[case][1], **(_TINY if tiny else {}), **_FULL}


def config_of(case: str, tiny: bool) -> Config:
    """The config of a case."""
    values = import_module(f"configs.{CASES[case][0]}").get_config()
    for key, value in overrides_of(case, tiny).items():
        section, name = key.split(".")
        values[section][name] = value
    return read_config(values, with_data=False)


def target_here() -> str | None:
    """This machine's name as a target of plans; None where there is none."""
    kind = jax.devices()[0].device_kind
    name = next((target for known, target in _KINDS.items() if known in kind), None)
    return name and f"{name}-{jax.device_count()}"


def planned(case: str, tiny: bool, target: str) -> dict[str, Any]:
    """What a plan in a process of its own says of the step: bytes, least seconds, the compiler's refusal."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--config.{key}={value}" for key, value in overrides_of(case, tiny).items()]
        command = [
            sys.executable,
            "main.py",
            f"--config=configs/{CASES[case][0]}.py",
            "--dry_run",
            f"--target={target}",
        ]
        done = subprocess.run(
            [*command, f"--out={folder}", *options], cwd=_ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        try:
            plan = json.loads((Path(folder) / "plan.json").read_text())
        except OSError:
            return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no plan was written"}
    step = next(program for program in plan["programs"] if program["kind"] == "step")
    bound = plan["bounds"].get(step["name"], {})
    return {
        "fits": plan["fits"],
        "bytes": step["findings"]["peak"],
        "seconds": max((bound[part] for part in ("arithmetic", "memory", "links")), default=None) if bound else None,
    }


def measured(config: Config, steps: int) -> dict[str, Any]:
    """Compiles the step here and runs it: bytes of a device, median seconds of a step, and the MFU where known."""
    mesh = run_parts.build_mesh(config)
    tx, (graph, params) = build_optimizer_of(config, mesh), build(config.model)
    micro_batches = batch_stages(config).largest
    state, cutoff = run_parts.first_state(config, tx, mesh)
    with run_parts.build_compiler(config, graph, tx, mesh) as compiler:
        compiled = compiler.get(StepVariant(low_pass_at(config, cutoff), micro_batches))
    shape = (micro_batches, config.train.batch_size, config.model.seq_len + config.model.chunk)
    windows = np.random.default_rng(0).integers(97, 123, shape).astype(np.uint8)
    windows = windows if mesh is None else distribute(windows, windows_sharding(mesh))
    seconds = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        state, metrics = compiled.run(state, windows, *events(Answer()))
        jax.block_until_ready(metrics.loss)
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds[3:])
    memory = compiled.run.memory_analysis()
    peak = peak_flops(jax.devices()[0].device_kind)
    useful = flops_per_byte(config, params) * micro_batches * config.train.batch_size * config.model.seq_len
    in_use = jax.devices()[0].memory_stats() or {}
    return {
        "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "bytes_in_use_at_most": in_use.get("peak_bytes_in_use"),
        "seconds": middle,
        "range": [min(seconds[3:]), max(seconds[3:])],
        "compile_seconds": compiled.seconds,
        "mfu": peak and useful / (middle * peak * (1 if mesh is None else mesh.size)),
        "loss": float(metrics.loss),
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.planned_and_measured", __doc__)
    parser.add_argument("--out", type=path_option, required=True, help="JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="tiny models and three steps, to try the script")
    args = parser.parse_args(arguments)
    return run_command(lambda: _measure_all(args.out, args.tiny))


def _measure_all(out: Path, tiny: bool) -> None:
    target = target_here()
    results: dict[str, Any] = {"environment": environment(), "target": target, "cases": {}}
    for case in CASES:
        row: dict[str, Any] = {"planned": planned(case, tiny, target) if target else None}
        try:
            row["measured"] = measured(config_of(case, tiny), 3 if tiny else 20)
        except jax.errors.JaxRuntimeError as error:  # Out of memory: the other cases still tell something.
            row["measured"] = {"error": str(error).splitlines()[0]}
        results["cases"][case] = row
        print(case, json.dumps(row), flush=True)
        unfinished = out.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(results, indent=1) + "\n")  # After each, so that a time limit loses one case.
        unfinished.replace(out)


if __name__ == "__main__":
    sys.exit(main())
