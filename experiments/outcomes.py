"""What a trial of a sweep left behind: how far its run came and what it scored, read from its folder."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from experiments.trials import Trial
from fftlm_jax.raft.cycle_recorder import has_finished
from fftlm_jax.raft.cycle_result import best_of
from fftlm_jax.raft.journal import Journal
from fftlm_jax.recording.history import is_number
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.runtime.untrusted import read_json_object


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial left behind: its status, its last evaluation, and why it is not finished.

    `finished`, `failed`, `cut short`, `not run`, `other settings` where its folder holds a run that is not this one, or
    `unreadable` where a file of it does not tell. Of the last two nothing is run, so that nothing is lost.
    """

    trial: Trial
    status: str
    scores: dict[str, float]
    reason: str = ""


def outcome_of(trial: Trial, folder: Path, config: str = "") -> Outcome:
    """Reads what a trial left behind; runs nothing. With `config`, also checks that it was run from that file."""
    failed, settings = folder / f"{trial.name}.failed", settings_file(trial, folder)
    try:
        different = _different(settings, settings_of(trial, config), has_run=(folder / trial.name).exists())
        if different:
            reason = f"{', '.join(different)} differ from what was run in this folder; use another --out"
            return Outcome(trial, "other settings", {}, reason)
        begun, finished, scores = reached(folder / trial.name)
        if finished:
            return Outcome(trial, "finished", scores)
        if failed.exists():
            return Outcome(trial, "failed", scores, failed.read_text(errors="replace").strip())
    except (CheckpointError, OSError) as error:
        return Outcome(trial, "unreadable", {}, str(error))
    return Outcome(trial, "cut short" if begun else "not run", scores)


def settings_file(trial: Trial, folder: Path) -> Path:
    """The file beside a trial's folder that says what was run there."""
    return folder / f"{trial.name}.trial.json"


def _different(file: Path, wanted: dict[str, Any], *, has_run: bool) -> list[str]:
    """The settings of a trial, as its file tells them if there is one, that are not those that are wanted.

    Without a run, a file that cannot be read is what a launch left that died in its first moment: it tells nothing.

    Raises:
        CheckpointError: if the file cannot be read beside a run.
    """
    if not file.exists():
        return []
    try:
        found = read_json_object(file)
        return [key for key, value in wanted.items() if value and found[key] != value]
    except (OSError, ValueError, LookupError) as error:
        if not has_run:
            return []
        raise CheckpointError(
            f"{file} does not tell what was run there ({error}); delete it if the settings are the same, or use "
            "another --out."
        ) from None


def settings_of(trial: Trial, config: str) -> dict[str, Any]:
    """What the file says."""
    return {"config": config, "overrides": list(trial.overrides), "seed": trial.seed}


class Reached(NamedTuple):
    """`scores` of the last evaluation (language model) or of all cycles (fine-tuning)."""

    begun: bool
    finished: bool
    scores: dict[str, float]


def reached(workdir: Path) -> Reached:
    """Reads a run directory; one that is not there has not begun.

    Raises:
        CheckpointError: naming a file of it that cannot be read.
    """
    config = workdir / "config.json"
    if not config.exists():
        return Reached(False, False, {})
    try:
        values = read_json_object(config)
        is_raft = values.get("task") == "raft"
        last = 0 if is_raft else values["train"]["steps_per_epoch"] * values["train"]["epochs"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{config} cannot be read ({error}); restore it, or move {workdir} away to train anew."
        ) from None
    return _cycles(workdir) if is_raft else _steps(workdir, last)


def _steps(workdir: Path, last: int) -> Reached:
    metrics = workdir / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.exists() else []
    evals = [record for record in records if record["kind"] == "eval"]
    is_saved = (workdir / "checkpoints" / str(last) / "manifest.json").exists()
    is_evaluated = bool(evals) and evals[-1]["step"] == last
    if is_saved and not is_evaluated:  # A run evaluates before it saves, and one that is finished does so no more.
        raise CheckpointError(
            f"{metrics} lacks the evaluation at step {last}, the last one, which is saved; restore it, or move "
            f"{workdir} away to train anew."
        )
    scores = {name: value for name, value in evals[-1].items() if is_number(value)} if evals else {}
    return Reached(bool(records), is_saved and is_evaluated, scores)


def _cycles(workdir: Path) -> Reached:
    """Held-out rates of wrong answers, so that lower is better as everywhere else, and what became of them."""
    results = Journal(workdir).results()
    if not results:
        return Reached(True, False, {})
    rates = [result.held_out.rate for result in results]
    best = best_of(results)
    scores = {
        "step": results[-1].cycle,
        "error": 1 - rates[-1],
        "best_error": 1 - best.held_out.rate,
        "start_error": 1 - rates[0],
        "best_cycle": best.cycle,
        "late_drop": best.held_out.rate - rates[-1],
        "lr_area": sum(result.train.lr_area for result in results if result.train),
        "gold_loss": results[-1].held_out.gold_loss,
    }
    return Reached(True, has_finished(workdir / "metrics.jsonl"), scores)
