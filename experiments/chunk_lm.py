"""Which parts of the chunk language model earn their time? Arms trained for equal seconds, three seeds each.

    python -m experiments.chunk_lm --out=runs/chunk_lm          # measure, train, tabulate, draw
    python -m experiments.chunk_lm --out=runs/chunk_lm --report # tabulate and draw what is there

Equal seconds without a quiet machine: the step times of all arms are measured first, in one interleaved run (this part
wants idle cores, for two minutes), and every arm then gets as many steps as fit into the budget. What a number of steps
leads to does not depend on the load, so the training itself may share the machine. Each learning rate decays over the
arm's own steps. Base of all arms: configs/small.py.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import small
from experiments import bench  # First: it sets XLA flags before JAX starts.
from experiments.chunk_lm_figure import draw
from experiments.outcomes import Outcome
from experiments.sweep import add_options, conduct, report, require_writable, write_results
from experiments.trials import Trial
from fftlm_jax.checkpoints.run_directory import environment
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config
from fftlm_jax.runtime.process import CommandParser, path_option

CONFIG = "configs/small.py"
BASE = "base"
# Arms whose step costs what another's does, or that are given its number of steps.
STEPS_OF = {
    "attention, steps of base": BASE,
    "attention, twice the LR": "attention",
    "twice the LR": BASE,
}
Overrides = dict[str, Any]

_PLAIN = {"model.projections": False, "model.conv_heads": 1, "model.kernel_basis": "taps"}
_ORIGINAL_LOSS = {"objective.positions": "last", "objective.next_byte_weight": 0.0}
_ATTENTION = {"model.mixer": "attention", "model.ffn_mult": 1.5}
_CURRICULUM = {"curriculum.rule": "plateau"}
_SIGNAL = {"curriculum.method": "signal", "lr.restart": "pulse"}

# Each differs from the base in one thing, or is a corner of the square of block and supervision.
ARMS: dict[str, Overrides] = {
    BASE: {},
    "next_byte_weight 0": {"objective.next_byte_weight": 0.0},
    "positions last": {"objective.positions": "last"},
    "tap parameters": {"model.kernel_basis": "taps"},
    "memory aligned": {"model.memory": "aligned"},
    "memory polar": {"model.memory": "polar"},
    "attention": _ATTENTION,
    "attention, half the LR": {**_ATTENTION, "lr.base": 2e-3},
    "attention, twice the LR": {**_ATTENTION, "lr.base": 8e-3},
    "attention, steps of base": _ATTENTION,
    "twice the LR": {"lr.base": 8e-3},
    "plain block": _PLAIN,
    "original loss": _ORIGINAL_LOSS,
    "plain block, original loss": {**_PLAIN, **_ORIGINAL_LOSS},
    "with curriculum": _CURRICULUM,
    "original_block": {**_PLAIN, **_ORIGINAL_LOSS, **_CURRICULUM, **_SIGNAL},
}
_EPOCHS = 8
_ROUNDS = 15


def config_of(overrides: Overrides) -> Config:
    """The validated config of an arm."""
    values = small.get_config()
    values.update_from_flattened_dict(overrides)
    return read_config(values)


def measure_steps() -> dict[str, float]:
    """Milliseconds of a training step of every arm: medians of interleaved rounds."""
    arms = {arm: overrides for arm, overrides in ARMS.items() if arm not in STEPS_OF}
    steps = {arm: bench.training_step(config_of(overrides)) for arm, overrides in arms.items()}
    times = bench.interleaved(steps, _ROUNDS)
    return {arm: round(statistics.median(times[arm]), 2) for arm in arms}


def trials(step_ms: dict[str, float], seconds: float, seeds: int) -> list[Trial]:
    """Every arm with the steps that fit into the budget, seeds slowest."""
    found = []
    for seed in range(seeds):
        for arm, overrides in ARMS.items():
            per_epoch = max(1, round(1e3 * seconds / step_ms[STEPS_OF.get(arm, arm)] / _EPOCHS))
            once = _EPOCHS * per_epoch  # Evaluated and saved at the end only.
            length = {"train.steps_per_epoch": per_epoch, "train.epochs": _EPOCHS}
            quiet = {"eval.every": once, "checkpoint.every": once, "eval.max_bytes": 524288, "sample.bytes": 0}
            settings = {**overrides, **length, **quiet}
            found.append(Trial(arm, tuple(f"{key}={value}" for key, value in settings.items()), seed))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = CommandParser("python -m experiments.chunk_lm", __doc__)
    parser.add_argument("--out", required=True, type=path_option, help="folder of the experiment")
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of every arm")
    parser.add_argument("--seeds", type=int, default=3)
    add_options(parser)
    args = parser.parse_args(arguments)
    measured = args.out / "step_ms.json"
    if not measured.exists():
        if args.report:
            parser.error(f"--report: {measured} is missing; nothing was run there")
        require_writable(parser, args.out)
        found = {"environment": environment(), "seconds": args.seconds, "step_ms": measure_steps()}
        measured.write_text(json.dumps(found, indent=1) + "\n")
    begun = json.loads(measured.read_text())
    if begun["seconds"] != args.seconds:
        parser.error(f"--seconds: this folder was begun with {begun['seconds']}; use that, or another --out")
    planned = trials(begun["step_ms"], args.seconds, args.seeds)
    return conduct(parser, args, CONFIG, planned, lambda outcomes: write_report(outcomes, begun["step_ms"], args.out))


def write_report(outcomes: Sequence[Outcome], step_ms: dict[str, float], folder: Path) -> None:
    """REPORT.md, its picture and trials.json."""
    lines = ["| arm | step ms | steps |", "|---|---|---|"]
    steps = {o.trial.arm: int(o.scores["step"]) for o in outcomes if o.status == "finished"}
    lines += [f"| {arm} | {step_ms[STEPS_OF.get(arm, arm)]:.1f} | {steps.get(arm, '')} |" for arm in ARMS]
    text = "\n".join(lines) + "\n"
    for metric in ("bpb", "chunk_bpb"):
        text += f"\n{report(outcomes, metric, BASE)}"
    write_results(outcomes, text, folder)
    draw(outcomes, folder / "chunk_lm.png")


if __name__ == "__main__":
    sys.exit(main())
