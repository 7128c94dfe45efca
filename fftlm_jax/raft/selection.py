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
