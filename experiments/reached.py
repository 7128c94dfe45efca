"""How far a run came and what it scored, read from its folder, whichever task it is of."""

import json
from pathlib import Path
from typing import NamedTuple

from fftlm_jax.raft.cycle_recorder import has_finished
from fftlm_jax.raft.cycle_result import best_of
from fftlm_jax.raft.journal import Journal
from fftlm_jax.recording.metrics import read_metrics


class Reached(NamedTuple):
    """`scores` of the last evaluation (language model) or of all cycles (fine-tuning)."""

    begun: bool
    finished: bool
    scores: dict[str, float]


def reached(workdir: Path) -> Reached:
    """Reads a run directory; one that is not there has not begun."""
    config = workdir / "config.json"
    if not config.exists():
        return Reached(False, False, {})
    values = json.loads(config.read_text())
    return _cycles(workdir) if values.get("task") == "raft" else _steps(workdir, values["train"])


def _steps(workdir: Path, train: dict[str, int]) -> Reached:
    metrics = workdir / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.exists() else []
    evals = [record for record in records if record["kind"] == "eval"]
    if not evals:
        return Reached(bool(records), False, {})
    step = evals[-1]["step"]
    is_last = step == train["steps_per_epoch"] * train["epochs"]
    finished = is_last and (workdir / "checkpoints" / str(step) / "manifest.json").exists()
    return Reached(True, finished, {k: v for k, v in evals[-1].items() if isinstance(v, (int, float))})


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
