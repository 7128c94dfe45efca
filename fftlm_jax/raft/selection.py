"""Plans the next cycle, and selects the completions that it is trained on.

Which completions a cycle is trained on: pure functions of the verdicts, blind to the order of prompts.

Whatever has to be chosen among equals is chosen by a hash of the seed, the prompt and the completion. A rule by rank in
one list ("the better half") would, with rewards of 0 and 1, keep the first half of the prompt file.
Left out: rewards between 0 and 1, and topping up with failures.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fftlm_jax.config.schema import RaftConfig
from fftlm_jax.raft.cycle_lr import CycleLR, adapted
from fftlm_jax.raft.cycle_result import CycleResult, best_of, two_errors


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


class Candidate(NamedTuple):
    """One sampled completion and whether the verifier accepts it."""

    prompt: bytes
    completion: bytes
    ok: bool
    sample: int = 0  # Its number among the samples of its prompt.


def select(
    candidates: Sequence[Candidate], *, per_prompt: int, seed: int, drop_solved: bool = False, budget: int = 0
) -> list[Candidate]:
    """Different right completions, at most `per_prompt` of a prompt, in an order that only the seed decides.

    Args:
        candidates: all completions of all prompts.
        per_prompt: completions kept of a prompt, at most.
        seed: decides ties.
        drop_solved: leave out prompts all of whose completions are right.
        budget: completions kept in all, at most; 0 for no limit.
    """
    solved = _prompts(candidates) - _prompts(c for c in candidates if not c.ok) if drop_solved else set()
    different = {(c.prompt, c.completion): c._replace(sample=0) for c in candidates if c.ok and c.prompt not in solved}
    return _capped(different.values(), per_prompt, seed)[: budget or None]


def select_random(candidates: Sequence[Candidate], *, per_prompt: int, seed: int, count: int) -> list[Candidate]:
    """The control: `count` samples (if there are as many) under the same cap, each as likely as any other.

    Equal completions are not put together: where most samples of a prompt agree, so do most that are drawn.
    """
    return _capped(candidates, per_prompt, seed)[:count]


def _capped(candidates: Iterable[Candidate], per_prompt: int, seed: int) -> list[Candidate]:
    by_prompt: dict[bytes, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_prompt[candidate.prompt].append(candidate)

    def rank(candidate: Candidate) -> bytes:
        numbers = b"%d %d %d " % (seed, len(candidate.prompt), candidate.sample)
        return hashlib.sha256(numbers + candidate.prompt + candidate.completion).digest()

    kept = [c for group in by_prompt.values() for c in sorted(group, key=rank)[:per_prompt]]
    return sorted(kept, key=rank)


def _prompts(candidates: Iterable[Candidate]) -> set[bytes]:
    return {candidate.prompt for candidate in candidates}
