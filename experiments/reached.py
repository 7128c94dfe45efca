"""How far a run came and what it scored, read from its folder, whichever task it is of."""

from pathlib import Path
from typing import NamedTuple

from fftlm_jax.raft.cycle_recorder import has_finished
from fftlm_jax.raft.cycle_result import best_of
from fftlm_jax.raft.journal import Journal
from fftlm_jax.recording.history import is_number
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.runtime.untrusted import read_json_object


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
