"""Is a frequency curriculum worth it: which rule, which ladder, how long the low rungs, which filter, or none at all.

    python -m experiments.curriculum_ablation --out=runs/curriculum_ablation --seeds=5 --jobs=2

Every arm sees the same data under the documents' learning rate (stages of 2, 3 and the rest, a restart at every raise)
for the same number of steps. A mask, a filter of kernels and a change of their basis cost next to nothing, so equal
steps are equal seconds: `--step_times` measures that, interleaved. Two arms are evaluated at every epoch, all others
before every raise, with the first and the inner bytes of words apart: the documents say that a quarter of the band
teaches characters, half of it words, all of it spelling. The folder gets REPORT.md, trials.json, samples of what each
cutoff writes, and a picture.
"""

import ast
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import curriculum_trial
from experiments import bench  # First of all that starts JAX: it sets XLA flags.
from experiments.curriculum_ablation_figure import draw
from experiments.outcomes import Outcome
from experiments.sweep import add_options, conduct, report, write_results
from experiments.trials import Trial
from fftlm_jax.checkpoints.run_directory import environment
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.process import CommandParser, path_option

CONFIG = "configs/curriculum_trial.py"
BASE = "none"
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
# Steps that might cost something else than the base's: at its lowest cutoff, with filtered kernels, in another basis.
_TIMED = ("schedule 2/5/10", "minimum phase, 2/5/10", "tap parameters")
_WATCHED = (BASE, "schedule 2/5/10")
_ROUNDS = 25


def config_of(overrides: Overrides) -> Config:
    """The validated config of an arm; tuples are written as on the command line."""
    values = curriculum_trial.get_config()
    for key, value in overrides.items():
        is_tuple = isinstance(value, str) and value.startswith("(")
        values.update_from_flattened_dict({key: ast.literal_eval(value) if is_tuple else value})
    return read_config(values)


def measure_steps() -> bench.Row:
    """Milliseconds of training steps, all taking turns, and their ratios to the base's (median and range)."""
    steps = {arm: bench.training_step(config_of(ARMS[arm])) for arm in (BASE, *_TIMED)}
    return bench.compare(f"training step of {CONFIG}", steps, _ROUNDS)


def trials(seeds: int) -> list[Trial]:
    """Every arm, seeds slowest."""
    found = []
    look = {"eval.before_raise": True, "sample.bytes": 96}
    per_epoch = curriculum_trial.get_config().train.steps_per_epoch
    for seed in range(seeds):
        for arm, overrides in ARMS.items():
            every = {"eval.every": per_epoch} if arm in _WATCHED else {}
            settings = {**overrides, **look, **every}
            found.append(Trial(arm, tuple(f"{key}={value}" for key, value in settings.items()), seed))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = CommandParser("python -m experiments.curriculum_ablation", __doc__)
    parser.add_argument("--out", required=True, type=path_option, help="folder of the experiment")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--step_times", action="store_true", help="measure the steps, on quiet cores; train nothing")
    add_options(parser)
    args = parser.parse_args(arguments)
    if args.step_times:
        print(json.dumps({"environment": environment(), **measure_steps()}, indent=1))
        return 0
    planned = trials(args.seeds)
    return conduct(parser, args, CONFIG, planned, lambda outcomes: write_report(outcomes, args.out))


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
