"""Benchmarks, each figure a ratio from one interleaved run: machines are shared and noisy, so no side runs alone.

    pip install -e ".[bench]"                   # for the sides in PyTorch, which are left out without it
    python -m experiments.bench conv step
    python -m experiments.bench raise --json=out.json

`conv`: a convolution by every way there is, here and in PyTorch; its memory; the table behind `choose_method`.
`step`: the training steps of `aligned` and `shakespeare_cpu` against the same model in PyTorch.
`optimizer`: what alpha adds to an update, grouping against optax's Muon leaf by leaf, and Muon's step against AdamW's.
`decode`: a byte of generated text by mode and by place; --workdir adds the speculative drafts of a trained run.
`raise`: the steps around a raise, compiled ahead or not, and with the cutoff traced instead.
`evaluation`: what an evaluation costs after 1,000 and after 200,000 recorded steps.
`malloc`: a training step with and without `runtime.process.keep_freed_blocks`.
`scale`: memory of a device and collectives of a step on eight simulated devices, by mesh.
"""

import json
import os
import platform
import sys
from collections.abc import Callable

from fftlm_jax.runtime import matrix_units, process
from fftlm_jax.runtime.process import CommandParser, path_option

process.keep_freed_blocks(os.environ)
matrix_units.set_cpu_flags(os.environ)

from experiments.bench_conv import bench_conv  # noqa: E402 (jax reads its flags on import)
from experiments.bench_decode import bench_decode  # noqa: E402
from experiments.bench_evaluation import bench_evaluation  # noqa: E402
from experiments.bench_malloc import bench_malloc  # noqa: E402
from experiments.bench_optimizer import bench_optimizer  # noqa: E402
from experiments.bench_raise import bench_raise  # noqa: E402
from experiments.bench_scale import bench_scale  # noqa: E402
from experiments.bench_step import bench_step  # noqa: E402
from experiments.interleaved import Row  # noqa: E402
from fftlm_jax.checkpoints.run_directory import environment  # noqa: E402

SUITES: dict[str, Callable[..., list[Row]]] = {
    "conv": bench_conv,
    "step": bench_step,
    "optimizer": bench_optimizer,
    "decode": bench_decode,
    "raise": bench_raise,
    "evaluation": bench_evaluation,
    "scale": bench_scale,
    "malloc": bench_malloc,
}


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.bench", __doc__)
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds, at least 9")
    parser.add_argument("--workdir", type=path_option, help="of suite decode: a trained run with a chunk head")
    parser.add_argument("--json", type=path_option, help="also write the rows and the environment to this file")
    args = parser.parse_args(arguments)
    if args.rounds < 9:
        parser.error("--rounds: at least 9, or the median means little")
    if args.workdir and "decode" not in args.suites:
        parser.error("--workdir: only suite decode looks at a trained run; name it too or leave --workdir out")
    results = {"environment": environment(), "processor": platform.processor(), "rounds": args.rounds}
    print(json.dumps(results["environment"]))
    for suite in args.suites:
        options = {"workdir": args.workdir} if suite == "decode" else {}
        results[suite] = rows = SUITES[suite](args.rounds, **options)
        for row in rows:
            print(" | ".join(f"{name}: {value}" for name, value in row.items()))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
