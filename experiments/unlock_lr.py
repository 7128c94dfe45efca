"""What the learning rate should do when the cutoff is raised: restart it, reduce it, both or neither.

    python -m experiments.unlock_lr --out=runs/unlock_lr --seeds=5 --jobs=2

One source document restarts to the full peak ("shock and awe"), another halves the rate ("high frequencies need low
LR"). Here every pair of `lr.restart` and `lr.factor` answers the same raises, at the same steps, on the same data, in
four settings: the documents' ladder of three raises or a single raise from a quarter to the whole band, with stages
that begin where the raises fall ("aligned") or a first stage that runs across them ("misaligned"). Four policies are
also tried where reducing should help most: at twice the learning rate, and under a filter whose raise makes the loss
jump (a masked spectrum's does not).

Left out, because nothing there can differ: where a stage begins at a raise its learning rate restarts by itself, so
`none` and `pulse` are run with factors 1 and 0.5 alone; and on the single raise 1/4 -> 1, `sqrt_ratio` is 0.5 and
`inverse_ratio` 0.25. The folder gets REPORT.md, trials.json and a picture of the loss around the first raise.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.around_raises import after_raise
from experiments.outcomes import Outcome
from experiments.sweep import add_options, conduct, report, write_results
from experiments.trials import Trial
from experiments.unlock_lr_figure import draw
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.process import CommandParser, path_option

CONFIG = "configs/curriculum_trial.py"
_ALIGNED = "lr.stages=((2,1.0,0.1),(3,1.0,0.1),('rest',1.0,0.05))"
_MISALIGNED = "lr.stages=((5,1.0,0.1),('rest',1.0,0.05))"
_ONE_RAISE = "curriculum.schedule=((0,0.25),(2,1.0))"
_ALIGNED_ONCE = "lr.stages=((2,1.0,0.1),('rest',1.0,0.05))"
SETTINGS: dict[str, tuple[str, ...]] = {
    "ladder, aligned": (_ALIGNED,),
    "ladder, misaligned": (_MISALIGNED,),
    "one raise, aligned": (_ONE_RAISE, _ALIGNED_ONCE),
    "one raise, misaligned": (_ONE_RAISE, _MISALIGNED),
}
FACTORS = ("1.0", "0.7", "0.5", "0.25", "sqrt_ratio", "inverse_ratio", "adaptive")
_NAMED_RATIOS = ("sqrt_ratio", "inverse_ratio")
# Settings in which four policies are run.
FEW: dict[str, tuple[str, ...]] = {
    "ladder, misaligned, twice the LR": (_MISALIGNED, "lr.base=0.016"),
    "one raise, misaligned, minimum phase": (
        *(_ONE_RAISE, _MISALIGNED),
        *("curriculum.method=minimum_phase", "curriculum.transition_bins=4"),
    ),
}


def policies(setting: str) -> list[tuple[str, str]]:
    """(restart, factor) pairs to run in a setting."""
    factors = [f for f in FACTORS if f not in _NAMED_RATIOS or setting.startswith("ladder")]
    pairs = [("tooth", factor) for factor in factors]
    pairs += [("none", f) for f in (("1.0", "0.5") if setting.endswith(", aligned") else factors)]
    return [*pairs, ("pulse", "1.0"), *([("pulse", "0.5")] if setting.endswith("misaligned") else [])]


def baseline(setting: str) -> str:
    """The documents' plateau rule: restart to the full peak."""
    return f"{setting}: tooth x 1.0"


def trials(seeds: int) -> list[Trial]:
    """All settings and policies, seeds slowest."""
    found = []
    for seed in range(seeds):
        for setting, overrides in SETTINGS.items():
            for restart, factor in policies(setting):
                answer = (f"lr.restart={restart}", f"lr.factor={factor}")
                found.append(Trial(f"{setting}: {restart} x {factor}", (*overrides, *answer), seed))
        for setting, overrides in FEW.items():
            for restart, factor in (("tooth", "1.0"), ("tooth", "0.5"), ("none", "1.0"), ("none", "0.5")):
                answer = (*overrides, f"lr.restart={restart}", f"lr.factor={factor}")
                found.append(Trial(f"{setting}: {restart} x {factor}", answer, seed))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = CommandParser("python -m experiments.unlock_lr", __doc__)
    parser.add_argument("--out", required=True, type=path_option, help="folder of the experiment")
    parser.add_argument("--seeds", type=int, default=5)
    add_options(parser)
    args = parser.parse_args(arguments)
    planned = trials(args.seeds)
    return conduct(parser, args, CONFIG, planned, lambda outcomes: write_report(outcomes, args.out))


def write_report(outcomes: Sequence[Outcome], folder: Path) -> None:
    """REPORT.md, a table a setting: final scores, and what the loss did after the first raise; the picture."""
    scored = [with_first_raise(outcome, folder) for outcome in outcomes]
    text = ""
    for setting in (*SETTINGS, *FEW):
        here = [outcome for outcome in scored if outcome.trial.arm.startswith(f"{setting}:")]
        text += f"## {setting}\n\n{report(here, 'bpb', baseline(setting), ('spike', 'wobble', 'alternation'))}\n"
    write_results(scored, text, folder)
    draw(scored, folder, folder / "unlock_lr.png", [name for name in SETTINGS if name.endswith("misaligned")])


def with_first_raise(outcome: Outcome, folder: Path) -> Outcome:
    """The outcome with what its loss did around its first raise (see `around_raises`)."""
    if outcome.status != "finished":
        return outcome
    found = after_raise(read_metrics(folder / outcome.trial.name / "metrics.jsonl"))
    return Outcome(outcome.trial, outcome.status, {**outcome.scores, **found}, outcome.reason)


if __name__ == "__main__":
    sys.exit(main())
