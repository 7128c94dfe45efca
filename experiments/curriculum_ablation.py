"""Is a frequency curriculum worth it: which rule, which ladder, how long the low rungs, which filter, or none at all.

    python -m experiments.curriculum_ablation --out=runs/curriculum_ablation --seeds=5 --jobs=2

Every arm sees the same data under the documents' learning rate (stages of 2, 3 and the rest, a restart at every raise)
for the same number of steps. Masking a spectrum costs nothing, so for most arms equal steps are equal seconds; where a
step costs something else (`--step_times` measures it, interleaved) an arm is run again with the steps that the base's
seconds hold. Two arms are evaluated at every epoch, and all others before every raise, with the first and the inner
bytes of words apart: the documents say that a quarter of the band teaches characters, half of it words, all of it
spelling. The folder gets REPORT.md, trials.json, samples of what each cutoff writes, and a picture.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import curriculum_trial
from experiments import bench  # First of all that starts JAX: it sets XLA flags.
from experiments.curriculum_ablation_figure import draw
from experiments.sweep import Outcome, Trial, add_options, exit_code, listing, outcomes_of, report, write_results
from fftlm_jax.config import Config, read_config
from fftlm_jax.training.metrics import read_metrics
from fftlm_jax.training.run_directory import environment

CONFIG = "configs/curriculum_trial.py"
BASE = "none"
_EPOCHS = 12
Overrides = dict[str, Any]

_NONE = {"curriculum.rule": "none"}
_MINIMUM_PHASE = {"curriculum.method": "minimum_phase", "curriculum.transition_bins": 4}
_ONE_STAGE = {"lr.stages": "(('rest',1.0,0.05),)"}
_NO_ANSWER = {"lr.restart": "none"}

# Schedules in epochs of 50 steps; cutoffs as fractions of Nyquist.
ARMS: dict[str, Overrides] = {
    BASE: _NONE,
    "schedule 2/5/10": {},
    "schedule, very early": {"curriculum.schedule": "((0,0.25),(1,0.5),(2,1.0),(3,'full'))"},
    "schedule, late": {"curriculum.schedule": "((0,0.25),(4,0.5),(8,1.0),(11,'full'))"},
    "plateau rule": {"curriculum.rule": "plateau"},
    "from 64": {
        "curriculum.ladder": "(0.125,0.25,0.5,1.0,'full')",
        "curriculum.schedule": "((0,0.125),(1,0.25),(2,0.5),(5,1.0),(10,'full'))",
    },
    "half band for 1 epoch": {"curriculum.schedule": "((0,0.5),(1,'full'))"},
    "half band for 5 epochs": {"curriculum.schedule": "((0,0.5),(5,'full'))"},
    "quarter band for 5 epochs": {"curriculum.schedule": "((0,0.25),(5,'full'))"},
    "minimum phase, 2/5/10": _MINIMUM_PHASE,
    "tap parameters": {**_NONE, "model.kernel_basis": "taps"},
    "none, one stage": {**_NONE, **_ONE_STAGE},
    "very early, one stage": {
        "curriculum.schedule": "((0,0.25),(1,0.5),(2,1.0),(3,'full'))",
        **_ONE_STAGE,
        **_NO_ANSWER,
    },
    "2/5/10, one stage": {**_ONE_STAGE, **_NO_ANSWER},
}
# Whose step may cost something else than the base's: run again at equal seconds.
OTHER_COST = ("minimum phase, 2/5/10", "tap parameters")
_WATCHED = (BASE, "schedule 2/5/10")
_ROUNDS = 25


def config_of(overrides: Overrides) -> Config:
    """The validated config of an arm; tuples are written as on the command line."""
    values = curriculum_trial.get_config()
    for key, value in overrides.items():
        is_tuple = isinstance(value, str) and value.startswith("(")
        values.update_from_flattened_dict({key: eval(value) if is_tuple else value})
    return read_config(values)


def measure_steps() -> dict[str, float]:
    """Milliseconds of a training step of the base, of a quarter of its band and of the others, interleaved; medians."""
    kinds = {BASE: ARMS[BASE], "quarter band": {}, **{arm: ARMS[arm] for arm in OTHER_COST}}
    times = bench.interleaved({name: bench.training_step(config_of(o)) for name, o in kinds.items()}, _ROUNDS)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def trials(seeds: int, step_ms: dict[str, float]) -> list[Trial]:
    """Every arm at equal steps, and those of other cost at equal seconds; seeds slowest."""
    found = []
    look = {"eval.before_raise": True, "sample.bytes": 96}
    per_epoch = curriculum_trial.get_config().train.steps_per_epoch
    for seed in range(seeds):
        for arm, overrides in ARMS.items():
            every = {"eval.every": per_epoch} if arm in _WATCHED else {}
            found.append(_trial(arm, {**overrides, **look, **every}, seed))
        for arm in OTHER_COST:
            steps = round(per_epoch * step_ms[BASE] / step_ms[arm])
            length = {
                "train.steps_per_epoch": steps,
                "eval.every": _EPOCHS * steps,
                "checkpoint.every": _EPOCHS * steps,
            }
            found.append(_trial(f"{arm}, equal seconds", {**ARMS[arm], **look, **length}, seed))
    return found


def _trial(arm: str, overrides: Overrides, seed: int) -> Trial:
    return Trial(arm, tuple(f"{key}={value}" for key, value in overrides.items()), seed)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.curriculum_ablation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the experiment")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--step_times", action="store_true", help="measure the steps, on quiet cores; run nothing else")
    add_options(parser)
    args = parser.parse_args(arguments)
    measured = args.out / "step_ms.json"
    if args.step_times or not (measured.exists() or args.report):
        args.out.mkdir(parents=True, exist_ok=True)
        measured.write_text(json.dumps({"environment": environment(), "step_ms": measure_steps()}, indent=1) + "\n")
        print(measured.read_text())
    if args.step_times:
        return 0
    if not measured.exists():
        parser.error(f"--report: {measured} is missing; nothing was run there")
    planned = trials(args.seeds, json.loads(measured.read_text())["step_ms"])
    if args.list:
        print(listing(planned))
        return 0
    outcomes = outcomes_of(parser, args, CONFIG, planned)
    if args.index is None:
        write_report(outcomes, args.out)
    return exit_code(outcomes)


def write_report(outcomes: Sequence[Outcome], folder: Path) -> None:
    """REPORT.md: final scores, and where in words each cutoff spends its bits; samples.md; the picture."""
    finished = [outcome for outcome in outcomes if outcome.status == "finished"]
    text = report(outcomes, "bpb", BASE) + "\n" + words_table(finished, folder)
    write_results(outcomes, text, folder)
    first = [o for o in finished if o.trial.arm == "schedule 2/5/10" and o.trial.seed == 0]
    (folder / "samples.md").write_text("".join((folder / o.trial.name / "samples.txt").read_text() for o in first))
    draw(finished, folder, folder / "curriculum_ablation.png", _WATCHED)


def words_table(outcomes: Sequence[Outcome], folder: Path) -> str:
    """Bits per byte by place in the word just before each raise of the documents' schedule, beside no curriculum."""
    rows: dict[tuple[int, str], list[dict[str, float]]] = {}
    cutoffs: dict[int, int] = {}
    for outcome in (o for o in outcomes if o.trial.arm in _WATCHED):
        records = read_metrics(folder / outcome.trial.name / "metrics.jsonl")
        raises = {r["step"]: r["from"] for r in records if r.get("event") == "cutoff_raised"}
        cutoffs.update(raises)
        for record in records:
            if record["kind"] == "eval":
                rows.setdefault((record["step"], outcome.trial.arm), []).append(record["bpb_by_word_place"])
    lines = [
        "| before the raise at | cutoff | arm | word's first byte | inner bytes | outside |",
        "|---|---|---|---|---|---|",
    ]
    steps = [*sorted(cutoffs), max((step for step, _ in rows), default=0)]
    for step in steps:
        for arm in _WATCHED:
            places = rows.get((step, arm), [])
            if places:
                means = [statistics.fmean(p[name] for p in places) for name in ("word_first", "word_inner", "outside")]
                shown = " | ".join(f"{mean:.3f}" for mean in means)
                cutoff = "full" if arm == BASE else cutoffs.get(step, "full")
                lines.append(f"| {step} | {cutoff} | {arm} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
