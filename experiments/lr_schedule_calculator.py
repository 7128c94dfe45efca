"""Learning rates of RAFT cycles, before a run: tables, a picture, YAML, JSON, and the card's recommendations.

    python -m experiments.lr_schedule_calculator --compare --visualize
    python -m experiments.lr_schedule_calculator --base-lr 5e-5 --decay 0.85 --yaml
    python -m experiments.lr_schedule_calculator --recommendations

All options combine. Without any of them it prints the rates of the schedule that the numbers describe.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from experiments.lr_recommendations import recommendations
from experiments.lr_tables import comparison, rate_table
from fftlm_jax.raft.cycle_lr import CycleLR
from fftlm_jax.raft.lr_yaml import to_yaml

_SCHEDULES = ("constant", "exponential", "step", "wsd", "manual")
_SUFFIXES = (".png", ".yaml", ".json")


def as_json(schedules: Mapping[str, CycleLR], cycles: int) -> str:
    """{schedule: [rate of each cycle]}, exact."""
    rates = {name: [schedule(n) for n in range(1, cycles + 1)] for name, schedule in schedules.items()}
    return json.dumps(rates, indent=1) + "\n"


def visualize(schedules: Mapping[str, CycleLR], cycles: int, file: Path) -> None:
    """A curve per schedule, as a PNG."""
    import matplotlib

    from fftlm_jax.recording.curves import replace_figure

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5))
    numbers = range(1, cycles + 1)
    for name, schedule in schedules.items():
        axis.plot(numbers, [schedule(n) for n in numbers], "o-", label=name)
    axis.set_xticks(numbers)
    axis.set_xlabel("RAFT cycle")
    axis.set_ylabel("learning rate")
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.grid(alpha=0.25)
    axis.legend()
    replace_figure(figure, file)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.cycles < 1:
        parser.error(f"--cycles: must be at least 1, not {args.cycles}")
    try:
        own = _own_schedule(args)
        schedules = comparison(args.base_lr) if args.compare else {}
        schedules |= {} if own in schedules.values() else {_name(own): own}
    except ValueError as error:
        parser.error(f"--schedule {args.schedule}: {error}")
    if args.recommendations:
        print(recommendations(args.base_lr))
    if args.compare or not (args.recommendations or args.yaml or args.json or args.visualize):
        print(rate_table(schedules, args.cycles))
    try:
        if args.yaml:
            _give(to_yaml(own, args.cycles), ".yaml", args.output)
        if args.json:
            _give(as_json(schedules, args.cycles), ".json", args.output)
        if args.visualize:
            picture = _stem(args.output or Path("lr_schedules")).with_suffix(".png")
            visualize(schedules, args.cycles, picture)
            print(f"see {picture}")
    except OSError as error:
        parser.error(f"--output: {args.output} cannot be written ({error.strerror})")
    return 0


def _give(text: str, suffix: str, output: Path | None) -> None:
    """Writes text to the output's file of this kind, or prints it where no output is named."""
    if output is None:
        print(text, end="")
    else:
        file = _stem(output).with_suffix(suffix)
        file.write_text(text)
        print(f"see {file}")


def _stem(output: Path) -> Path:
    return output.with_suffix("") if output.suffix in _SUFFIXES else output


def _own_schedule(args: argparse.Namespace) -> CycleLR:
    """The schedule that the options describe."""
    if args.schedule == "manual":
        rates = tuple(float(rate) for rate in args.rates.split(",") if rate)
        return CycleLR("manual", rates=rates, floor=args.min_lr)
    shape = {
        "constant": {},
        "exponential": {"decay": args.decay},
        "step": {"decay": args.decay, "every": args.every},
        "wsd": {"warmup": args.warmup, "stable": args.stable, "fall": args.fall, "final": args.final},
    }[args.schedule]
    return CycleLR(args.schedule, args.base_lr, floor=args.min_lr, **shape)


def _name(schedule: CycleLR) -> str:
    return f"decay {schedule.decay:.2f}" if schedule.kind == "exponential" else schedule.kind


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lr_schedule_calculator", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--compare", action="store_true", help="table of the card's decay factors beside the schedule")
    parser.add_argument("--visualize", action="store_true", help="picture of the same")
    parser.add_argument("--yaml", action="store_true", help="the schedule as YAML")
    parser.add_argument("--json", action="store_true", help="every cycle's rate as JSON")
    parser.add_argument("--recommendations", action="store_true", help="the card's advice, which are hypotheses")
    parser.add_argument("--base-lr", type=float, default=5e-5, help="learning rate of cycle 1")
    parser.add_argument("--decay", type=float, default=0.85, help="factor per cycle, or per step")
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--schedule", choices=_SCHEDULES, default="exponential")
    parser.add_argument("--every", type=int, default=2, help="step: cycles that share a rate")
    parser.add_argument("--warmup", type=int, default=2, help="wsd: cycles of warm-up")
    parser.add_argument("--stable", type=int, default=2, help="wsd: cycles at the base")
    parser.add_argument("--fall", type=int, default=4, help="wsd: cycles from the base to --final of it")
    parser.add_argument("--final", type=float, default=0.2, help="wsd: fraction of the base at the end")
    parser.add_argument("--rates", default="", help="manual: as in 5e-5,4e-5,3e-5")
    parser.add_argument("--min-lr", type=float, default=0.0, help="no cycle is below it")
    parser.add_argument("--output", type=Path, help="write OUTPUT.png, .yaml and .json in place of printing the latter")
    return parser


if __name__ == "__main__":
    sys.exit(main())
