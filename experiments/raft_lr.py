"""Does a learning rate that falls from cycle to cycle keep fine-tuning from going bad? The source card's experiment.

    python -m experiments.raft_lr --out=runs/raft_lr_grid --grid --seeds=2 --jobs=2   # which base rate to start from
    python -m experiments.raft_lr --out=runs/raft_lr --seeds=3 --jobs=2               # the card's three, and controls
    python -m experiments.raft_lr --out=runs/raft_lr_inter --interactions --jobs=2    # the card's four interactions

Per seed, supervised fine-tuning is done once and every arm starts from its weights, so that arms differ in nothing but
what their names say. Beside the card's three schedules there are two that constant rates must be told from: a constant
rate with the same sum over all steps as each falling one ("equal area": a falling rate is also a smaller one), and the
random filter, which trains on as many samples without asking the verifier.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.raft_lr_figure import draw
from experiments.sweep import Outcome, add_options, conduct, exit_code, report, run_all, write_results
from experiments.trials import Trial
from fftlm_jax.raft import CycleLR, lr_area

CONFIG = "configs/raft.py"
_NO_ONE_STEPS_IN = "raft.on_regress=continue"
_CYCLES = 8
_DECAYS = {"decay 0.85": 0.85, "decay 0.70": 0.70}
BASELINE = "constant"

# The card's four interactions: the key and the values beside the base config's own.
INTERACTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rank": ("raft.lora_rank", ("4", "64")),
    "batch": ("raft.batch_size", ("32", "512")),
    "temperature": ("raft.temperature", ("0.7", "1.6")),
    "data": ("raft.prompts", ("375", "6000")),
}
_RATES = ("0.5", "1.0", "2.0")  # Times the base rate of the config.


def schedule_arms() -> dict[str, tuple[str, ...]]:
    """The card's three schedules, the constant rates of equal area, and the control."""
    arms: dict[str, tuple[str, ...]] = {BASELINE: ("raft.lr=constant",)}
    for name, decay in _DECAYS.items():
        arms[name] = ("raft.lr=exponential", f"raft.lr_decay={decay}")
    for name, decay in _DECAYS.items():
        share = lr_area(CycleLR("exponential", 1.0, decay), _CYCLES) / _CYCLES
        arms[f"constant, area of {name}"] = ("raft.lr=constant", f"raft.lr_base={{base}}*{share:.4f}")
    arms["random filter"] = ("raft.lr=constant", "raft.filter=random")
    return arms


def grid_arms() -> dict[str, tuple[str, ...]]:
    """Constant rates in multiples of the supervised one, and the card's absolute one."""
    arms = {f"sft_lr x {ratio}": (f"raft.lr_base={ratio}",) for ratio in (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)}
    return {**arms, "absolute 5e-5": ("raft.lr_unit=absolute", "raft.lr_base=5e-5")}


def interaction_arms() -> dict[str, tuple[str, ...]]:
    """Every value of every interaction at three rates, and the base at the same three."""
    settings = [("base", ())]
    for name, (key, values) in INTERACTIONS.items():
        settings += [(f"{name} {value}", (f"{key}={value}",)) for value in values]
    return {
        f"{name}, lr x {rate}": (*overrides, f"raft.lr_base={{base}}*{rate}")
        for name, overrides in settings
        for rate in _RATES
    }


def trials(arms: dict[str, tuple[str, ...]], seeds: int, cycles: int, folder: Path, base: float) -> list[Trial]:
    """Every arm and seed, on the supervised weights of that seed; seeds vary slowest."""
    found = []
    for seed in range(seeds):
        start = (f"init.checkpoint={folder / supervised(seed).name}", "raft.sft_epochs=0", f"raft.cycles={cycles}")
        for arm, overrides in arms.items():
            numbers = tuple(_resolved(override, base) for override in overrides)
            found.append(Trial(arm, (*start, _NO_ONE_STEPS_IN, *numbers), seed))
    return found


def supervised(seed: int) -> Trial:
    """The run that all arms of a seed start from."""
    return Trial("supervised", ("raft.cycles=0",), seed)


def _resolved(override: str, base: float) -> str:
    """`key={base}*0.5` with the product in place of it."""
    key, _, factor = override.partition("={base}*")
    return f"{key}={base * float(factor):.6g}" if factor else override


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = argparse.ArgumentParser(prog="python -m experiments.raft_lr", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder of the experiment")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cycles", type=int, help=f"per run; {_CYCLES}, or 4 with --grid and --interactions")
    parser.add_argument("--base", type=float, default=_base_of_config(), help="base rate in multiples of sft_lr")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--grid", action="store_true", help="compare base rates")
    which.add_argument("--interactions", action="store_true", help="rank, batch, temperature, data against the rate")
    add_options(parser)
    args = parser.parse_args(arguments)
    is_short = args.grid or args.interactions
    arms = grid_arms() if args.grid else interaction_arms() if args.interactions else schedule_arms()
    planned = trials(arms, args.seeds, args.cycles or (4 if is_short else _CYCLES), args.out.resolve(), args.base)
    if not (args.list or args.report):
        code = exit_code(run_all(CONFIG, [supervised(seed) for seed in range(args.seeds)], args.out, args.jobs))
        if code:
            return code
    baseline = "sft_lr x 1.0" if args.grid else "base, lr x 1.0" if args.interactions else BASELINE
    return conduct(parser, args, CONFIG, planned, lambda outcomes: write_report(outcomes, args.out, baseline))


def _base_of_config() -> float:
    from configs import raft

    return raft.get_config().raft.lr_base


def write_report(outcomes: Sequence[Outcome], folder: Path, baseline: str) -> None:
    """REPORT.md, trials.json and a picture of the rates over cycles."""
    also = ("best_error", "late_drop", "lr_area", "gold_loss")
    text = "`error`: share of held-out problems answered wrongly after the last cycle. `late_drop`: best rate minus "
    text += f"last.\n\n{report(outcomes, 'error', baseline, also)}"
    write_results(outcomes, text, folder)
    draw(outcomes, folder, folder / "raft_lr.png")


if __name__ == "__main__":
    sys.exit(main())
