"""Which completions a cycle is trained on: pure functions of the verdicts, blind to the order of prompts.

Whatever has to be chosen among equals is chosen by a hash of the seed, the prompt and the completion. A rule by rank in
one list ("the better half") would, with rewards of 0 and 1, keep the first half of the prompt file.
Left out: rewards between 0 and 1, and topping up with failures.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """One sampled completion and whether the verifier accepts it."""

    prompt: bytes
    completion: bytes
    ok: bool


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
    right = [c for c in candidates if c.ok and c.prompt not in solved]
    return _capped(right, per_prompt, seed)[: budget or None]


def select_random(candidates: Sequence[Candidate], *, per_prompt: int, seed: int, count: int) -> list[Candidate]:
    """The control: `count` different completions (if there are as many), right or wrong, under the same cap."""
    return _capped(candidates, per_prompt, seed)[:count]


def _capped(candidates: Iterable[Candidate], per_prompt: int, seed: int) -> list[Candidate]:
    by_prompt: dict[bytes, set[Candidate]] = defaultdict(set)
    for candidate in candidates:
        by_prompt[candidate.prompt].add(candidate)

    def rank(candidate: Candidate) -> bytes:
        text = b"%d %d " % (seed, len(candidate.prompt)) + candidate.prompt + candidate.completion
        return hashlib.sha256(text).digest()

    kept = [c for group in by_prompt.values() for c in sorted(group, key=rank)[:per_prompt]]
    return sorted(kept, key=rank)


def _prompts(candidates: Iterable[Candidate]) -> set[bytes]:
    return {candidate.prompt for candidate in candidates}
