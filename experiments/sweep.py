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
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.arm_statistics import Summary, compare_arms
from fftlm_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: an arm's overrides (`section.key=value`) and a seed; `folder` names its run directory if not ""."""

    arm: str
    overrides: tuple[str, ...]
    seed: int
    folder: str = ""

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return self.folder or f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', self.arm)}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial left behind: `finished`, `failed`, `cut short` or `not run`; its last evaluation; why it failed."""

    trial: Trial
    status: str
    scores: dict[str, float]
    reason: str = ""


def trials_of(
    arms: Sequence[tuple[str, Sequence[str]]], grid: Sequence[tuple[str, Sequence[str]]], seeds: Sequence[int]
) -> list[Trial]:
    """Every arm x every point of the grid x every seed; seeds vary slowest, so that whole comparisons finish first."""
    points = [dict(zip([key for key, _ in grid], values)) for values in itertools.product(*(v for _, v in grid))]
    trials = []
    for seed, (arm, overrides), point in itertools.product(seeds, arms, points):
        settings = tuple(f"{key}={value}" for key, value in point.items())
        trials.append(Trial(" ".join((arm, *settings)) if settings else arm, (*overrides, *settings), seed))
    names = [trial.name for trial in trials]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two trials would share a folder: {', '.join(twice)}; name the arms apart")
    return trials


def run_trial(config: str, trial: Trial, folder: Path) -> Outcome:
    """Runs (or goes on with) one trial in a child process, unless it is finished; its output goes to a log."""
    before = outcome_of(trial, folder)
    if before.status == "finished":
        return before
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{trial.name}.failed").unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "main.py"), f"--config={config}", f"--workdir={folder / trial.name}"]
    command += [f"--config.{override}" for override in (*trial.overrides, f"seed={trial.seed}")]
    # Trials of an arm differ in their seed only: the second one need not compile again.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compile_cache"), "PYTHONPATH": str(ROOT)}
    with (folder / f"{trial.name}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            command,
            cwd=Path.cwd(),
            env={**os.environ, **cache},
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        log.write(done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        (folder / f"{trial.name}.failed").write_text(f"exit code {done.returncode}: {last}\n")
    return outcome_of(trial, folder)


def outcome_of(trial: Trial, folder: Path) -> Outcome:
    """Reads what a trial left behind; runs nothing."""
    metrics, failed = folder / trial.name / "metrics.jsonl", folder / f"{trial.name}.failed"
    records = read_metrics(metrics) if metrics.exists() else []
    evals = [record for record in records if record["kind"] == "eval"]
    scores = {k: v for k, v in evals[-1].items() if isinstance(v, (int, float))} if evals else {}
    if any(record.get("event") == "finished" for record in records):
        return Outcome(trial, "finished", scores)
    if failed.exists():
        return Outcome(trial, "failed", scores, failed.read_text().strip())
    return Outcome(trial, "cut short" if records else "not run", scores)


def run_all(config: str, trials: Sequence[Trial], folder: Path) -> list[Outcome]:
    """Runs the trials one after the other and says how each went."""
    outcomes = []
    for number, trial in enumerate(trials):
        outcome = run_trial(config, trial, folder)
        shown = " ".join(f"{k}={v:.4f}" for k, v in outcome.scores.items() if k.endswith("bpb"))
        print(f"[{number + 1}/{len(trials)}] {trial.name}: {outcome.status} {shown or outcome.reason}", flush=True)
        outcomes.append(outcome)
    return outcomes


def values_by_arm(outcomes: Sequence[Outcome], metric: str) -> dict[str, dict[int, float]]:
    """{arm: {seed: value}} of the finished trials, arms in their first order."""
    table: dict[str, dict[int, float]] = {outcome.trial.arm: {} for outcome in outcomes}
    for outcome in outcomes:
        if outcome.status == "finished" and metric in outcome.scores:
            table[outcome.trial.arm][outcome.trial.seed] = outcome.scores[metric]
    return table


def report(outcomes: Sequence[Outcome], metric: str, baseline: str) -> str:
    """The table as Markdown: arms by rank, their mean, spread, and difference to the baseline on the same seeds."""
    rows = compare_arms(values_by_arm(outcomes, metric), baseline)
    lines = [
        f"| rank | arm | {metric}, mean | sd | seeds | minus `{baseline}` (95 % interval) |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {rank} | {row.arm} | {_cells(row)} |" for rank, row in enumerate(rows, start=1)]
    unfinished = [o for o in outcomes if o.status != "finished"]
    lines += ["", *(f"* {o.trial.name}: {o.status} {o.reason}".rstrip() for o in unfinished)]
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Summary) -> str:
    sd = "" if row.sd is None else f"{row.sd:.4f}"
    difference = "" if row.difference is None else f"{row.difference:+.4f}"
    if row.interval is not None:
        difference += f" ({row.interval[0]:+.4f} to {row.interval[1]:+.4f})"
    return f"{row.mean:.4f} | {sd} | {row.count} | {difference}"


def parse_arm(text: str) -> tuple[str, tuple[str, ...]]:
    """`name: key=value key=value` -> (name, overrides)."""
    name, _, overrides = text.partition(":")
    return name.strip(), tuple(overrides.split())


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 if a trial failed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description="Run a sweep and tabulate it.")
    parser.add_argument("--config", required=True, help="config file that every arm starts from")
    parser.add_argument("--out", required=True, type=Path, help="folder of the sweep")
    parser.add_argument("--arm", action="append", help="'name: key=value key=value'; may be repeated")
    parser.add_argument("--grid", action="append", default=[], help="'key=v1,v2,v3'; may be repeated")
    parser.add_argument("--seeds", default="0", help="as in 0,1,2")
    parser.add_argument("--metric", default="bpb", help="of the last evaluation")
    parser.add_argument("--baseline", help="arm that the others are compared with; the first by default")
    parser.add_argument("--list", action="store_true", help="print the trials and their numbers; run nothing")
    parser.add_argument("--index", type=int, help="run this trial only")
    parser.add_argument("--report", action="store_true", help="tabulate what is there; run nothing")
    args = parser.parse_args(arguments)
    try:
        grid = [(key, values.split(",")) for key, _, values in (point.partition("=") for point in args.grid)]
        seeds = [int(seed) for seed in args.seeds.split(",")]
        trials = trials_of([parse_arm(arm) for arm in args.arm or ["base"]], grid, seeds)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        print("\n".join(f"{i}  {trial.name}  {' '.join(trial.overrides)}" for i, trial in enumerate(trials)))
        return 0
    if args.index is not None:
        if not 0 <= args.index < len(trials):
            parser.error(f"--index: {args.index} is outside 0..{len(trials) - 1}")
        return int(run_all(args.config, [trials[args.index]], args.out)[0].status != "finished")
    if args.baseline and args.baseline not in {trial.arm for trial in trials}:
        parser.error(
            f"--baseline: {args.baseline!r} is no arm; choose from {', '.join(sorted({t.arm for t in trials}))}"
        )
    if args.report:
        outcomes = [outcome_of(trial, args.out) for trial in trials]
    else:
        outcomes = run_all(args.config, trials, args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(outcomes, args.metric, args.baseline or trials[0].arm)
    (args.out / "REPORT.md").write_text(text)
    (args.out / "trials.json").write_text(json.dumps([as_json(o) for o in outcomes], indent=1) + "\n")
    print(text)
    return int(any(outcome.status != "finished" for outcome in outcomes))


def as_json(outcome: Outcome) -> dict[str, Any]:
    """A trial's outcome for `trials.json`."""
    return {**dataclasses.asdict(outcome.trial), "status": outcome.status, **outcome.scores, "reason": outcome.reason}


if __name__ == "__main__":
    sys.exit(main())
