"""Sweeps: arms of dotted overrides x seeds, one child process a trial, and a table of what came out.

    python -m experiments.sweep --config=configs/small.py --out=runs/lr_sweep \\
        --arm "base" --arm "attention: model.mixer=attention model.ffn_mult=1.5" --grid lr.base=2e-3,4e-3 --seeds=0,1,2

`--grid` multiplies every arm by the values given; it may be repeated. The same command again skips finished trials and
resumes those that were cut short; one failing trial does not stop the rest. `--list` prints the trials with their
numbers and `--index=N` runs one of them, for the job array of a cluster. `--report` only reads what is there.

The folder holds one run directory a trial, `trials.json` and `REPORT.md`.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.arm_statistics import Summary, compare_arms
from experiments.children import Children
from experiments.outcomes import Outcome, outcome_of, settings_file, settings_of
from experiments.trials import Trial, parse_arm, parse_grid, parse_seeds, trials_of
from fftlm_jax.checkpoints.run_directory import write_bytes, write_json
from fftlm_jax.runtime.process import CommandParser, path_option, run_command

ROOT = Path(__file__).resolve().parent.parent


def run_all(config: str, trials: Sequence[Trial], folder: Path, jobs: int = 1) -> list[Outcome]:
    """Runs the trials that are not finished, `jobs` at a time, and says how each went.

    Each child has its share of the cores to itself, so that the number of threads, and with it the last bits of a
    result, does not depend on what else runs.
    """
    outcomes: dict[int, Outcome] = {}

    def settled(number: int) -> None:
        outcome = outcomes[number] = outcome_of(trials[number], folder, config)
        shown = " ".join(f"{k}={v:.4f}" for k, v in outcome.scores.items() if k.endswith("bpb"))
        print(
            f"[{len(outcomes)}/{len(trials)}] {trials[number].name}: {outcome.status} {shown or outcome.reason}",
            flush=True,
        )

    waiting: list[int] = []
    for number, trial in enumerate(trials):
        if outcome_of(trial, folder, config).status in ("finished", "other settings", "unreadable"):
            settled(number)
        else:
            waiting.append(number)
    with Children(jobs) as children:
        while waiting or children.running:
            while waiting and children.has_room:
                number = waiting.pop(0)
                children.start(number, *_command(config, trials[number], folder), folder / "compile_cache")
            number, code = children.wait()
            if code:
                log = (folder / f"{trials[number].name}.log").read_text(errors="replace")
                last = (log.strip().splitlines() or ["no message"])[-1]
                failed = f"exit code {code}: {last}\n".encode(errors="backslashreplace")
                write_bytes(folder / f"{trials[number].name}.failed", failed)
            settled(number)
    return [outcomes[number] for number in range(len(trials))]


def _command(config: str, trial: Trial, folder: Path) -> tuple[list[str], Path]:
    """The command of a trial and the log that its output goes to; its folder says from now on what was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(settings_file(trial, folder), settings_of(trial, config))
    (folder / f"{trial.name}.failed").unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "main.py"), f"--config={config}", f"--workdir={folder / trial.name}"]
    command += [f"--config.{override}" for override in (*trial.overrides, f"seed={trial.seed}")]
    return command, folder / f"{trial.name}.log"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every sweep has; `outcomes_of` answers them."""
    parser.add_argument("--list", action="store_true", help="print the trials and their numbers; run nothing")
    parser.add_argument("--index", type=int, help="run this trial only, and write no report")
    parser.add_argument("--report", action="store_true", help="report what is there; run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time, each on its share of the cores")


def outcomes_of(
    parser: argparse.ArgumentParser, args: argparse.Namespace, config: str, trials: Sequence[Trial]
) -> list[Outcome]:
    """Runs the trials asked for by `--index` and `--report`, or all, in the folder `args.out`."""
    if not 1 <= args.jobs <= (os.cpu_count() or 1):
        parser.error(f"--jobs: {args.jobs} is outside 1..{os.cpu_count()}, the cores of this machine")
    if args.index is not None and not 0 <= args.index < len(trials):
        parser.error(f"--index: {args.index} is outside 0..{len(trials) - 1}")
    if args.report and args.index is None:
        found = [outcome_of(trial, args.out, config) for trial in trials]
        if all(outcome.status == "not run" for outcome in found):
            parser.error(f"--report: {args.out} holds none of these trials; let --out name the folder of the sweep")
        return found
    if not Path(config.partition(":")[0]).is_file():
        parser.error(f"--config: {config} is no file; name a config file")
    require_writable(parser, args.out)
    if args.index is not None:
        return run_all(config, [trials[args.index]], args.out)
    return run_all(config, trials, args.out, args.jobs)


def require_writable(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Makes the folder of a sweep and proves it writable, before anything is trained; else ends the command."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        parser.error(f"--out: {folder} cannot be written ({error.strerror}); name another folder")


def conduct(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    config: str,
    trials: Sequence[Trial],
    write_report: Callable[[Sequence[Outcome]], None],
) -> int:
    """Does with the trials what the options of `add_options` ask for, and reports on them unless one was run alone."""

    def act() -> int:
        if args.list:
            print(listing(trials))
            return 0
        outcomes = outcomes_of(parser, args, config, trials)
        if args.index is None:
            write_report(outcomes)
        return exit_code(outcomes)

    return run_command(act)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if every trial is finished, else 1."""
    return int(any(outcome.status != "finished" for outcome in outcomes))


def write_results(outcomes: Sequence[Outcome], text: str, folder: Path) -> None:
    """REPORT.md and trials.json; prints the report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "REPORT.md", text.encode(errors="backslashreplace"))
    write_bytes(folder / "trials.json", (json.dumps([as_json(o) for o in outcomes], indent=1) + "\n").encode())
    print(text)


def listing(trials: Sequence[Trial]) -> str:
    """The trials and their numbers, a line each."""
    return "\n".join(f"{i}  {trial.name}  {' '.join(trial.overrides)}" for i, trial in enumerate(trials))


def values_by_arm(outcomes: Sequence[Outcome], metric: str) -> dict[str, dict[int, float]]:
    """{arm: {seed: value}} of the finished trials, arms in their first order."""
    table: dict[str, dict[int, float]] = {outcome.trial.arm: {} for outcome in outcomes}
    for outcome in outcomes:
        if outcome.status == "finished" and metric in outcome.scores:
            table[outcome.trial.arm][outcome.trial.seed] = outcome.scores[metric]
    return table


def report(outcomes: Sequence[Outcome], metric: str, baseline: str, also: Sequence[str] = ()) -> str:
    """The table as Markdown: arms by rank, their mean, spread, and difference to the baseline on the same seeds.

    Args:
        outcomes: of all trials.
        metric: what ranks the arms, the lower the better.
        baseline: the arm that the others are compared with.
        also: further metrics whose difference to the baseline each row shows (the baseline's own shows its mean).
    """
    rows = compare_arms(values_by_arm(outcomes, metric), baseline)
    further = [{row.arm: row for row in compare_arms(values_by_arm(outcomes, name), baseline)} for name in also]
    head = f"| rank | arm | {metric}, mean | sd | seeds | minus `{baseline}` (95 % interval) |"
    lines = [head + "".join(f" {name} |" for name in also), "|---" * (6 + len(also)) + "|"]
    for rank, row in enumerate(rows, start=1):
        others = "".join(f" {_difference(table[row.arm]) if row.arm in table else ''} |" for table in further)
        lines.append(f"| {rank} | {row.arm} | {_cells(row)} |{others}")
    unfinished = [o for o in outcomes if o.status != "finished"]
    lines += ["", *(f"* {o.trial.name}: {o.status} {o.reason}".rstrip() for o in unfinished)]
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Summary) -> str:
    sd = "" if row.sd is None else f"{row.sd:.4f}"
    return f"{row.mean:.4f} | {sd} | {row.count} | {'' if row.difference is None else _difference(row)}"


def _difference(row: Summary) -> str:
    """The difference to the baseline with its interval; the baseline's own mean."""
    if row.difference is None:
        return f"{row.mean:.4f}"
    interval = "" if row.interval is None else f" ({row.interval[0]:+.4f} to {row.interval[1]:+.4f})"
    return f"{row.difference:+.4f}{interval}"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = CommandParser("python -m experiments.sweep", __doc__)
    parser.add_argument("--config", required=True, help="config file that every arm starts from")
    parser.add_argument("--out", required=True, type=path_option, help="folder of the sweep")
    parser.add_argument("--arm", action="append", help="'name: key=value key=value'; quotes group; may be repeated")
    parser.add_argument("--grid", action="append", default=[], help="'key=v1,v2,v3'; may be repeated")
    parser.add_argument("--seeds", default="0", help="as in 0,1,2 or 0-4")
    parser.add_argument("--metric", default="bpb", help="of the last evaluation")
    parser.add_argument("--baseline", help="arm that the others are compared with; the first by default")
    add_options(parser)
    args = parser.parse_args(arguments)
    return run_command(lambda: _conduct(parser, args))


def _conduct(parser: CommandParser, args: argparse.Namespace) -> int:
    try:
        grid = [parse_grid(point) for point in args.grid]
        seeds = parse_seeds(args.seeds)
        trials = trials_of([parse_arm(arm) for arm in args.arm or ["base"]], grid, seeds)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        print(listing(trials))
        return 0
    if args.baseline and args.baseline not in {trial.arm for trial in trials}:
        parser.error(
            f"--baseline: {args.baseline!r} is no arm; choose from {', '.join(sorted({t.arm for t in trials}))}"
        )
    outcomes = outcomes_of(parser, args, args.config, trials)
    if args.index is not None:
        return exit_code(outcomes)
    finished = [outcome for outcome in outcomes if outcome.status == "finished"]
    if finished and not any(args.metric in outcome.scores for outcome in finished):
        parser.error(f"--metric: no trial has {args.metric!r}; they have {', '.join(sorted(finished[0].scores))}")
    write_results(outcomes, report(outcomes, args.metric, args.baseline or trials[0].arm), args.out)
    return exit_code(outcomes)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """A trial's outcome for `trials.json`."""
    return {**dataclasses.asdict(outcome.trial), "status": outcome.status, **outcome.scores, "reason": outcome.reason}


if __name__ == "__main__":
    sys.exit(main())
