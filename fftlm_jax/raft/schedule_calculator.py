"""Prints the learning rates of RAFT cycles before a run: tables, a picture, YAML, JSON, the card's recommendations.

    fftlm lr-schedule --compare --visualize
    fftlm lr-schedule --base-lr 5e-5 --decay 0.85 --yaml
    fftlm lr-schedule --recommendations

Numbers are rounded as the source card (LR quick reference) prints them. All options combine. Without
any of them it prints the rates of the schedule that the numbers describe.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from fftlm_jax.raft.cycle_lr import CycleLR, lr_area
from fftlm_jax.raft.lr_yaml import to_yaml
from fftlm_jax.runtime.process import CommandParser, path_option, run_command

_SCHEDULES = ("constant", "exponential", "step", "wsd", "manual")
_MOST_CYCLES = 2**16  # As of `raft.cycles`.
_LARGEST_RATE = 1e18  # Far beyond any that trains; sums and multiples of it are numbers still.
_SUFFIXES = (".png", ".yaml", ".json")
_PICTURE = Path("lr_schedules")  # Where no output is named.


# The card's decay factors and what it says of each; 1 is the constant baseline.
DECAY_NOTES = {
    1.0: "baseline for comparison",
    0.95: "little decay",
    0.85: "where it starts",
    0.70: "if 0.85 is too weak",
}


def scientific(value: float, digits: int) -> str:
    """`5.00e-5` with so many digits behind the point, halves rounded up in decimal as the card rounds them.

    >>> scientific(5e-5 * 0.7**2, 1), scientific(1e-3, 2), scientific(9.996e-5, 1), scientific(0, 1)
    ('2.5e-5', '1.00e-3', '1.0e-4', '0.0e0')
    """
    exact = Decimal(repr(float(value)))
    # Products such as 5e-5 * 0.7**2 lie a few units of the last binary place off the decimal half that is meant.
    exact = Decimal(f"{exact:.12e}")
    shift = exact.adjusted() if exact else 0
    mantissa = exact.scaleb(-shift).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    if abs(mantissa) >= 10:
        mantissa, shift = (mantissa / 10).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP), shift + 1
    return f"{mantissa}e{shift}"


def comparison(base: float) -> dict[str, CycleLR]:
    """The card's four decay factors from one base."""
    return {
        "constant" if decay == 1 else f"decay {decay:.2f}": CycleLR("constant", base)
        if decay == 1
        else CycleLR("exponential", base, decay)
        for decay in DECAY_NOTES
    }


def rate_table(schedules: Mapping[str, CycleLR], cycles: int) -> str:
    """Every cycle's rate with three digits, a row a schedule, and the sum over cycles in units of the first."""
    heads = [f"cycle {n}" for n in range(1, cycles + 1)]
    rows = [["schedule", *heads, "sum / first"]]
    for name, schedule in schedules.items():
        rates = [scientific(schedule(n), 2) for n in range(1, cycles + 1)]
        rows.append([name, *rates, f"{lr_area(schedule, cycles) / schedule(1):.3f}"])
    return aligned(rows)


def decay_table(base: float) -> str:
    """The card's own table: cycles 1, 3 and 5 with one digit behind the point, and a note."""
    rows = [["decay", "cycle 1", "cycle 3", "cycle 5", ""]]
    for schedule, (decay, note) in zip(comparison(base).values(), DECAY_NOTES.items(), strict=True):
        rows.append([f"{decay:.2f}", *(scientific(schedule(n), 1) for n in (1, 3, 5)), note])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


_CARD = """\
HYPOTHESES OF THE SOURCE CARD, NOT FINDINGS. What came of them here, on tiny models, is in experiments/CLAIMS.md: its
absolute rates and the quarter lost, 0.85 did well, nothing was seen that decay would have prevented.

Starting points
{starts}
Rule of thumb: the RAFT rate is a quarter of the SFT rate ({base} is a quarter of {sft}). Absolute values do not carry
over to other models: here a base is better given as a ratio of the SFT rate.

Decay over five cycles from {base}
{decays}
Of these only 0.85 ends in the card's own range for cycle 5 of a base of 5.0e-5. No decay factor changes cycle 1, so
decay cannot cure what goes wrong in it.

Decision tree
  Begin with {base} and decay 0.85 (elsewhere the card says: with the constant baseline).
    The loss oscillates or gets worse -> reduce: decay 0.70, or a lower base.
    The loss is flat, no improvement  -> increase: base {higher}, or decay 0.95.

Signs of a rate too high                        Signs of a rate too low
  the training loss spikes or oscillates          the training loss hardly moves
  validation rises while training falls           several cycles with the same verification rate
  the gradient norm is often at its limit         gradient norms below 0.05
  a cycle is worse than the one before            it feels like wasted compute
  generated text repeats itself

If you change ...        the rate may need to be ...
  LoRA rank, up            slightly lower (contested: with the scale alpha/r it is nearly independent of rank)
  batch size, up           slightly higher
  temperature, up          possibly slightly higher
  less data                lower: there is less signal

Remember
  1. These are hypotheses.              2. Start from a baseline, then follow what you see.
  3. Log everything.                    4. Change one thing at a time.
  5. Watch the held-out verification rate: a loss also falls when a filter keeps samples at random.
"""


def recommendations(base: float) -> str:
    """The advice for a base learning rate of cycle 1."""
    sft = 4 * base
    starts = aligned(
        [
            ["phase", "learning rate", "confidence, says the card"],
            ["SFT (LoRA)", scientific(sft, 1), "high"],
            ["RAFT, cycle 1", scientific(base, 1), "medium"],
            ["RAFT, cycle 5", f"{scientific(0.4 * base, 1)} to {scientific(0.6 * base, 1)}", "low"],
        ]
    )
    numbers = {"base": scientific(base, 1), "sft": scientific(sft, 1), "higher": scientific(1.4 * base, 1)}
    return _CARD.format(starts=starts, decays=decay_table(base), **numbers)


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
    from matplotlib.ticker import MaxNLocator

    figure, axis = plt.subplots(figsize=(8, 4.5))
    numbers = range(1, cycles + 1)
    for name, schedule in schedules.items():
        axis.plot(numbers, [schedule(n) for n in numbers], "o-", label=name)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("RAFT cycle")
    axis.set_ylabel("learning rate")
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.grid(alpha=0.25)
    axis.legend()
    replace_figure(figure, file)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    parser = _parser()
    args = parser.parse_args(arguments)
    return run_command(lambda: _run(parser, args))


def _run(parser: CommandParser, args: argparse.Namespace) -> None:
    if args.output and not args.output.name:
        parser.error(f"--output: {args.output} is no name of a file")
    if not 1 <= args.cycles <= _MOST_CYCLES:
        parser.error(f"--cycles: must be at least 1 and at most {_MOST_CYCLES}, not {args.cycles}")
    try:
        own = _own_schedule(args)
        schedules = comparison(args.base_lr) if args.compare else {}
        schedules |= {} if own in schedules.values() else {_name(own): own}
    except ValueError as error:
        parser.error(f"--schedule {args.schedule}: {error}")
    for name, rate in (("base-lr", args.base_lr), ("min-lr", args.min_lr), *(("rates", rate) for rate in own.rates)):
        if not (0 < rate <= _LARGEST_RATE or (name == "min-lr" and rate == 0)):
            parser.error(f"--{name}: a learning rate lies above 0 and is at most {_LARGEST_RATE:g}, not {rate}")
    if args.recommendations:
        print(recommendations(args.base_lr))
    if args.compare or not (args.recommendations or args.yaml or args.json or args.visualize):
        print(rate_table(schedules, args.cycles))
    texts = [(to_yaml(own, args.cycles), ".yaml")] if args.yaml else []
    texts += [(as_json(schedules, args.cycles), ".json")] if args.json else []
    for text, suffix in texts:
        if args.output is None:
            print(text, end="")
        else:
            _write(parser, _named(args.output, suffix), lambda file, text=text: file.write_text(text))
    if args.visualize:
        picture = _named(args.output or _PICTURE, ".png")
        _write(parser, picture, lambda file: visualize(schedules, args.cycles, file))


def _write(parser: CommandParser, file: Path, write: Callable[[Path], object]) -> None:
    """Has a file written and says where it is, or ends the command where it cannot be."""
    try:
        write(file)
    except OSError as error:
        parser.error(f"--output: {file} cannot be written ({error.strerror or error}); name another")
    print(f"see {file}")


def _named(output: Path, suffix: str) -> Path:
    """OUTPUT with a suffix: in place of one of ours, else behind it (lr0.85 becomes lr0.85.yaml)."""
    return output.with_suffix(suffix) if output.suffix in _SUFFIXES else output.with_name(f"{output.name}{suffix}")


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


def _parser() -> CommandParser:
    parser = CommandParser("fftlm lr-schedule", __doc__)
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
    parser.add_argument(
        "--output", type=path_option, help="write OUTPUT.png, .yaml and .json in place of printing the latter"
    )
    return parser
