"""Are high frequencies a jagged landscape that needs a lower learning rate? Curvature, limits and gradients measured.

    python -m experiments.sharpness --out=runs/sharpness            # train, measure, tabulate, draw
    python -m experiments.sharpness --out=runs/sharpness --report   # tabulate and draw what is there

Claims under test (the source's physics of the learning rate): a higher cutoff has a larger top Hessian eigenvalue, a
smaller largest stable learning rate, and successive gradients that point against each other. Base: configs/tiny.py,
which trains at each cutoff from scratch, held there. Three comparisons, each on the same seeds:
  own     weights trained at each cutoff, measured at it;
  raised  weights (and Adam's moments) trained at 1/4, measured at every cutoff from there up: what a raise meets;
  cut     weights trained at the full band, measured with the upper coefficients masked.
What is measured is said beside `MEASURES`. Not tested: minimum_phase and signal cutoffs, Muon, larger models.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.arm_statistics import Summary, compare_arms
from experiments.outcomes import Outcome
from experiments.sharpness_bench import (
    COMPARISONS,
    CONFIG,
    CUTOFFS,
    HIGHEST,
    LOWEST,
    MEASURES,
    Bench,
    Measure,
    View,
    learning_rates,
    load_state,
)
from experiments.sharpness_figure import draw
from experiments.sweep import add_options, exit_code, listing, outcomes_of, write_results
from experiments.trials import Trial
from fftlm_jax.checkpoints.run_directory import write_json
from fftlm_jax.recording.metrics import finite_record
from fftlm_jax.runtime.process import CommandParser, path_option, run_command


def trials(seeds: int) -> list[Trial]:
    """A run held at each cutoff, seeds slowest."""
    return [
        Trial(name, ("curriculum.rule=schedule", f"curriculum.schedule=((0,{value!r}),)"), seed)
        for seed in range(seeds)
        for name, value in CUTOFFS.items()
    ]


def measure(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Measures the finished trials that are not measured yet; writes `<trial>.landscape.json` for each."""
    bench: Bench | None = None
    for outcome in outcomes:
        file = _file_of(outcome.trial, folder)
        if outcome.status != "finished" or file.exists():
            continue
        config, state = load_state(folder / outcome.trial.name)
        bench = bench or Bench(config)
        trained, seed = outcome.trial.arm, outcome.trial.seed
        viewed_at = [c for c in CUTOFFS if any(holds(trained, c) for holds in COMPARISONS.values())]
        views = [bench.view(trained, viewed, seed, state) for viewed in viewed_at]
        write_json(file, finite_record({"lr": learning_rates(config), "views": [v._asdict() for v in views]}))
        print(f"measured {outcome.trial.name}", flush=True)


def _file_of(trial: Trial, folder: Path) -> Path:
    return folder / f"{trial.name}.landscape.json"


def read_views(outcomes: Sequence[Outcome], folder: Path) -> tuple[list[float], list[View]]:
    """The grid of learning rates and all measurements that are there."""
    rates, views = [], []
    for file in (_file_of(outcome.trial, folder) for outcome in outcomes):
        if file.exists():
            found = json.loads(file.read_text())
            rates = found["lr"]
            for view in found["views"]:
                # A null was infinite: a limit where there is no curvature.
                values = {name: [np.inf if v is None else v for v in vs] for name, vs in view["values"].items()}
                views.append(View(**{**view, "values": values}))
    return rates, views


def means_of(views: Sequence[View], comparison: str, name: str) -> dict[str, dict[int, float]]:
    """{cutoff: {seed: mean}} of one measure over the views that belong to a comparison and have it."""
    found: dict[str, dict[int, float]] = {cutoff: {} for cutoff in CUTOFFS}
    for view in views:
        if COMPARISONS[comparison](view.trained, view.viewed) and name in view.values:
            found[view.viewed][view.seed] = float(np.mean(view.values[name]))
    return found


def tables(views: Sequence[View]) -> str:
    """A Markdown table for each comparison: means and deviations over seeds, and changes from the lowest cutoff."""
    others = [cutoff for cutoff in CUTOFFS if cutoff != LOWEST]
    titles = ["measure", *CUTOFFS, *(f"{cutoff} against {LOWEST}" for cutoff in others), "sd within a run", "claim"]
    text = ""
    for comparison in COMPARISONS:
        rows = [_row(views, comparison, name, measure) for name, measure in MEASURES.items()]
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *filter(None, rows)]
        text += f"### {comparison}\n\n" + "\n".join(lines) + "\n\n"
    return text


def _row(views: Sequence[View], comparison: str, name: str, measure: Measure) -> str | None:
    """A measure's row; None where it was not taken at every cutoff."""
    values = means_of(views, comparison, name)
    if not all(values.values()):
        return None
    plain = {row.arm: row for row in compare_arms(values, LOWEST)}
    if measure.is_ratio:
        values = {cutoff: {seed: np.log(v) for seed, v in by_seed.items()} for cutoff, by_seed in values.items()}
    changes = {row.arm: row for row in compare_arms(values, LOWEST) if row.arm != LOWEST}
    within = [
        np.std(view.values[name], ddof=1)
        for view in views
        if COMPARISONS[comparison](view.trained, view.viewed) and len(view.values.get(name, ())) > 1
    ]
    cells = [f"{plain[c].mean:.3g}" + (f" ± {plain[c].sd:.2g}" if plain[c].sd is not None else "") for c in CUTOFFS]
    cells += [_change(changes[c], measure.is_ratio) for c in CUTOFFS if c != LOWEST]
    cells += [f"{np.mean(within):.2g}" if within else "", _verdict(changes[HIGHEST], measure.claim)]
    return f"| {measure.words} | {' | '.join(cells)} |"


def _change(row: Summary, is_ratio: bool) -> str:
    if row.difference is None:
        return ""
    numbers = [row.difference, *(row.interval or ())]
    if is_ratio:
        shown, *bounds = (f"{np.exp(v):.3g}" for v in numbers)
        return f"x {shown}" + (f" ({' to '.join(bounds)})" if bounds else "")
    shown, *bounds = (f"{v:+.3f}" for v in numbers)
    return shown + (f" ({' to '.join(bounds)})" if bounds else "")


def _verdict(row: Summary, claim: int) -> str:
    """The sentence that compares the highest cutoff with the lowest."""
    if not claim:
        return ""
    if row.interval is None or row.interval[0] <= 0 <= row.interval[1]:
        return "not resolved"
    return "as claimed" if row.interval[0] * claim > 0 else "the opposite"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = CommandParser("python -m experiments.sharpness", __doc__)
    parser.add_argument("--out", required=True, type=path_option, help="folder of the experiment")
    parser.add_argument("--config", default=CONFIG, help="config file of the model; AdamW at a constant learning rate")
    parser.add_argument("--seeds", type=int, default=5)
    add_options(parser)
    args = parser.parse_args(arguments)
    planned = trials(args.seeds)
    if args.list:
        print(listing(planned))
        return 0
    outcomes = outcomes_of(parser, args, args.config, planned)
    if not args.report:
        code = run_command(lambda: measure(outcomes, args.out))
        if code:
            return code
    if args.index is None:
        write_report(outcomes, args.out)
    return exit_code(outcomes)


def write_report(outcomes: Sequence[Outcome], folder: Path) -> None:
    """REPORT.md, its picture and trials.json."""
    rates, views = read_views(outcomes, folder)
    unfinished = [f"* {o.trial.name}: {o.status} {o.reason}".rstrip() for o in outcomes if o.status != "finished"]
    write_results(outcomes, tables(views) + "\n".join(unfinished), folder)
    if views:
        draw(rates, views, folder / "sharpness.png")


if __name__ == "__main__":
    sys.exit(main())
