"""Does a learning rate that falls from cycle to cycle keep fine-tuning from going bad? The source card's experiment.

    python -m experiments.raft_lr --out=runs/raft_lr_grid --grid --seeds=2 --jobs=2   # which base rate to start from
    python -m experiments.raft_lr --out=runs/raft_lr --seeds=3 --jobs=2               # the card's three, and controls
    python -m experiments.raft_lr --out=runs/raft_lr_dyck --config=configs/raft_dyck.py --base=4 --jobs=2
    python -m experiments.raft_lr --out=runs/raft_lr_inter --interactions --jobs=2    # the card's four interactions

Per seed, supervised fine-tuning is done once and every arm starts from its weights, so that arms differ in nothing but
what their names say. Beside the card's three schedules there are controls: for each falling rate a constant one with
the same sum over cycles ("area": a falling rate is also a smaller one), and the random filter, which in every cycle
trains on as many samples as the constant arm of its seed kept, without asking the verifier.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.outcomes import Outcome, outcome_of
from experiments.raft_lr_figure import draw
from experiments.sweep import add_options, conduct, exit_code, report, require_writable, run_all, write_results
from experiments.trials import Trial
from fftlm_jax.raft.cycle_lr import CycleLR, lr_area
from fftlm_jax.raft.journal import Journal
from fftlm_jax.runtime.process import CommandParser, path_option

_NO_ONE_STEPS_IN = "raft.on_regress=continue"
_CYCLES = 8
_DECAYS = {"decay 0.85": 0.85, "decay 0.70": 0.70}
BASELINE = "constant"

# The card's four interactions: the key and the values beside the base config's own. Data is what a cycle keeps at most:
# pools of other sizes would hold out other problems.
INTERACTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rank": ("raft.lora_rank", ("4", "64")),
    "batch": ("raft.batch_size", ("32", "512")),
    "temperature": ("raft.temperature", ("0.7", "1.6")),
    "data": ("raft.budget", ("75", "150")),
}
_RATES = (0.5, 1.0, 2.0)  # Times the base rate.


def schedule_arms(base: float, cycles: int) -> dict[str, tuple[str, ...]]:
    """The card's three schedules and the constant rates of equal area."""
    arms: dict[str, tuple[str, ...]] = {BASELINE: ("raft.lr=constant", f"raft.lr_base={base:.6g}")}
    for name, decay in _DECAYS.items():
        arms[name] = ("raft.lr=exponential", f"raft.lr_decay={decay}", f"raft.lr_base={base:.6g}")
    for name, decay in _DECAYS.items():
        equal = base * lr_area(CycleLR("exponential", 1.0, decay), cycles) / cycles
        arms[f"constant, area of {name}"] = ("raft.lr=constant", f"raft.lr_base={equal:.6g}")
    return arms


def grid_arms() -> dict[str, tuple[str, ...]]:
    """Constant rates in multiples of the supervised one, and the card's absolute one."""
    arms = {f"sft_lr x {ratio}": (f"raft.lr_base={ratio}",) for ratio in (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)}
    return {**arms, "absolute 5e-5": ("raft.lr_unit=absolute", "raft.lr_base=5e-5")}


def interaction_arms(base: float) -> dict[str, tuple[str, ...]]:
    """Every value of every interaction at three rates, and the base at the same three."""
    settings = [("base", ())]
    for name, (key, values) in INTERACTIONS.items():
        settings += [(f"{name} {value}", (f"{key}={value}",)) for value in values]
    return {
        f"{name}, lr x {rate}": (*overrides, f"raft.lr_base={base * rate:.6g}")
        for name, overrides in settings
        for rate in _RATES
    }


def trials(arms: dict[str, tuple[str, ...]], seeds: Sequence[int], cycles: int, folder: Path) -> list[Trial]:
    """Every arm and seed, on the supervised weights of that seed; seeds vary slowest."""
    return [
        Trial(arm, (*_start(seed, cycles, folder), *overrides), seed)
        for seed in seeds
        for arm, overrides in arms.items()
    ]


def _start(seed: int, cycles: int, folder: Path) -> tuple[str, ...]:
    weights = f"init.checkpoint={folder / supervised(seed).name}"
    return (weights, "raft.sft_epochs=0", f"raft.cycles={cycles}", _NO_ONE_STEPS_IN)


def control(constant: Trial, base: float, cycles: int, folder: Path) -> Trial:
    """The random filter beside a finished run of the constant rate, keeping as many samples in every cycle."""
    results = Journal(folder / constant.name).results()
    kept = tuple(result.samples.kept for result in results if result.samples)
    overrides = (f"raft.lr_base={base:.6g}", "raft.filter=random", f"raft.budget={kept}".replace(" ", ""))
    return Trial("random filter", (*_start(constant.seed, cycles, folder), *overrides), constant.seed)


def supervised(seed: int) -> Trial:
    """The run that all arms of a seed start from."""
    return Trial("supervised", ("raft.cycles=0",), seed)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = CommandParser("python -m experiments.raft_lr", __doc__)
    parser.add_argument("--out", required=True, type=path_option, help="folder of the experiment")
    parser.add_argument("--config", default="configs/raft.py", help="config that every run starts from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cycles", type=int, help=f"per run; {_CYCLES}, or 4 with --grid and --interactions")
    parser.add_argument("--base", type=float, help="base rate in multiples of sft_lr; the config's by default")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--grid", action="store_true", help="compare base rates")
    which.add_argument("--interactions", action="store_true", help="rank, batch, temperature, data against the rate")
    add_options(parser)
    args = parser.parse_args(arguments)
    base = args.base or _base_of(args.config)
    cycles = args.cycles or (4 if args.grid or args.interactions else _CYCLES)
    if args.grid:
        arms, baseline = grid_arms(), "sft_lr x 1.0"
    elif args.interactions:
        arms, baseline = interaction_arms(base), "base, lr x 1.0"
    else:
        arms, baseline = schedule_arms(base, cycles), BASELINE
    folder = args.out.resolve()
    planned = trials(arms, range(args.seeds), cycles, folder)
    if args.index is not None and not 0 <= args.index < len(planned):
        parser.error(f"--index: {args.index} is outside 0..{len(planned) - 1}")
    if not (args.list or args.report):
        require_writable(parser, args.out)
        seeds = range(args.seeds) if args.index is None else [planned[args.index].seed]
        code = exit_code(run_all(args.config, [supervised(seed) for seed in seeds], args.out, args.jobs))
        if code:
            return code
        if baseline == BASELINE and args.index is None:  # The controls are made of what these keep.
            run_all(args.config, planned, args.out, args.jobs)
    if baseline == BASELINE and args.index is None and not args.list:
        done = [t for t in planned if t.arm == BASELINE and outcome_of(t, args.out, args.config).status == "finished"]
        planned += [control(trial, base, cycles, folder) for trial in done]
    return conduct(parser, args, args.config, planned, lambda outcomes: write_report(outcomes, args.out, baseline))


def _base_of(config: str) -> float:
    """`raft.lr_base` of a config file of this folder's."""
    module = importlib.import_module(config.removesuffix(".py").replace("/", "."))
    return module.get_config().raft.lr_base


def write_report(outcomes: Sequence[Outcome], folder: Path, baseline: str) -> None:
    """REPORT.md, trials.json and a picture of the rates over cycles."""
    also = ("best_error", "late_drop", "lr_area", "gold_loss")
    text = "`error`: share of held-out problems answered wrongly after the last cycle. `late_drop`: best rate minus "
    text += f"last.\n\n{report(outcomes, 'error', baseline, also)}"
    write_results(outcomes, text, folder)
    draw(outcomes, folder, folder / "raft_lr.png")


if __name__ == "__main__":
    sys.exit(main())
