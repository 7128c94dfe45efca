"""Suite `malloc` of `experiments.bench`: a training step with and without its setting, in processes by turns."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from experiments.interleaved import Row

_WARM_UP, _STEPS, _PAIRS = 5, 60, 5


def bench_malloc(rounds: int) -> list[Row]:
    """Milliseconds, page faults and system time of a step of `shakespeare_cpu`, medians over pairs of processes.

    Malloc cannot be set back, so that each side needs a process of its own; `rounds` has no use here.
    """
    sides: dict[str, list[Row]] = {"glibc's default": [], "freed blocks kept": []}
    for _ in range(_PAIRS):
        for name, results in sides.items():
            results.append(_child(keep=name != "glibc's default"))
    row: Row = {"case": "training step of shakespeare_cpu"}
    for name, results in sides.items():
        row |= {f"{name}, {key}": round(statistics.median(r[key] for r in results), 1) for key in results[0]}
    ratios = [a["ms"] / b["ms"] for a, b in zip(*sides.values(), strict=True)]
    row |= {"speed-up": round(statistics.median(ratios), 2), "range": f"{min(ratios):.2f}-{max(ratios):.2f}"}
    return [row]


def _child(keep: bool) -> Row:
    child = subprocess.run(
        [sys.executable, "-m", "experiments.bench_malloc", "keep" if keep else "default"],
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout)


def _measure(keep: bool) -> Row:
    from fftlm_jax.runtime import process

    if keep and not process.keep_freed_blocks(os.environ):
        sys.exit("this system's malloc has no such setting, or MALLOC_ variables are set")
    import jax

    from configs import shakespeare_cpu
    from experiments.bench_step import training_step
    from fftlm_jax.config.reading import read_config

    step = training_step(read_config(shakespeare_cpu.get_config(), with_data=False))
    for _ in range(_WARM_UP):
        jax.block_until_ready(step())
    before, times = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(_STEPS):
        begun = time.perf_counter()
        jax.block_until_ready(step())
        times.append(1e3 * (time.perf_counter() - begun))
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "ms": statistics.median(times),
        "page faults": (after.ru_minflt - before.ru_minflt) / _STEPS,
        "system ms": 1e3 * (after.ru_stime - before.ru_stime) / _STEPS,
    }


if __name__ == "__main__":
    json.dump(_measure(sys.argv[1] == "keep"), sys.stdout)
