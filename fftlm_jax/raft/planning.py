"""What the next cycle does, a pure function of the results so far: a resumed run plans what a straight one did."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fftlm_jax.config import RaftConfig
from fftlm_jax.raft.cycle_lr import CycleLR, adapted
from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.raft.rules.history import best_of, two_errors


@dataclasses.dataclass(frozen=True)
class Plan:
    """A cycle to come."""

    cycle: int
    parent: int  # The cycle whose weights it samples from and starts from.
    lr: float
    level: int  # Of the hardest prompts.

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def has_regressed(results: Sequence[CycleResult]) -> bool:
    """Whether the newest cycle lies more than 2 standard errors of the difference below the best."""
    newest, best = results[-1], best_of(results)
    return newest.held_out.rate < best.held_out.rate - two_errors(newest, best)


def rollbacks(results: Sequence[CycleResult]) -> int:
    """How many cycles did not start from the one before them."""
    return sum(result.parent != result.cycle - 1 for result in results[1:])


def next_plan(
    results: Sequence[CycleResult], raft: RaftConfig, schedule: CycleLR, levels: int, lr_factor: float = 1.0
) -> Plan | None:
    """The cycle after these results, or None where none is to come.

    Args:
        results: of all cycles so far, cycle 0 first.
        raft: the run's settings.
        schedule: learning rate of every cycle; its kind `adaptive` goes on from the last cycle's rate.
        levels: of the task.
        lr_factor: what `adaptive` multiplies that rate with, as the advisor says.
    """
    cycle, regressed = len(results), has_regressed(results)
    if cycle > raft.cycles or (regressed and raft.on_regress == "stop"):
        return None
    parent, done = cycle - 1, rollbacks(results)
    if regressed and raft.on_regress == "rollback" and done < raft.rollbacks:
        parent, done = best_of(results).cycle, done + 1
    trained = [result.train.lr for result in results if result.train]
    if schedule.kind == "adaptive" and trained:
        if parent != cycle - 1:
            lr_factor = min(lr_factor, raft.regress_factor)  # The advice after a regress is this same reduction.
        lr = adapted(trained[-1], lr_factor, schedule.floor)
    else:
        lr = max(schedule(cycle) * raft.regress_factor**done, schedule.floor)
    return Plan(cycle, parent, lr, _level(results, raft, levels))


def _level(results: Sequence[CycleResult], raft: RaftConfig, levels: int) -> int:
    """One beyond the labelled problems at first; one further whenever enough of the hardest samples were right."""
    samples = results[-1].samples
    if samples is None:
        return min(raft.first_level + 1, levels)
    return min(samples.level + (samples.level_rate >= raft.level_rate), levels)
