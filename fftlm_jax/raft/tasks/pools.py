"""Three pools of problems that share no question: labelled ones, ones to sample from, and held-out ones.

Problems are read from the task's stream, twice as many as the pools take, and on, up to a bound, while these are not
enough. Their keys are put into an order by a hash of the seed and the key, and this order is cut in proportion to the
sizes of the pools; each pool then takes the first problems of the stream whose keys are its own. Which pool a problem
belongs to is thus a property of its key. The order is cut twice: once for problems of levels that the labelled pool may
hold, and once, between the two others, for the rest.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fftlm_jax.raft.tasks.task import Problem, Task

MOST_READ = 200_000  # Problems of a stream that are looked at.


class Pools(NamedTuple):
    """Problems of three disjoint pools, in the order of the task's stream.

    Attributes:
        sft: labelled problems, for supervised fine-tuning.
        raft: problems whose prompts are sampled from.
        held_out: problems that no training sees.
    """

    sft: tuple[Problem, ...]
    raft: tuple[Problem, ...]
    held_out: tuple[Problem, ...]


def make_pools(task: Task, *, sft: int, raft: int, held_out: int, seed: int, sft_level: int | None = None) -> Pools:
    """Fills three pools of the given sizes; a function of the arguments alone.

    Args:
        task: whose problems.
        sft, raft, held_out: sizes of the pools.
        seed: of the order of the problems and of who gets which.
        sft_level: the labelled pool takes problems up to this level only; None for all.

    Raises:
        ValueError: one sentence, if there are too few problems.
    """
    sizes = (sft, raft, held_out)
    if min(sizes) < 0:
        raise ValueError(f"A pool cannot have {min(sizes)} problems.")
    wanted = sum(sizes)
    most_level = task.levels if sft_level is None else sft_level
    stream = task.problems(seed)
    read: list[_Read] = []
    upto = min(2 * wanted, MOST_READ)
    while True:
        news = list(itertools.islice(stream, upto - len(read)))
        read += [_Read(problem, task.key(problem.prompt), task.level(problem.prompt) <= most_level) for problem in news]
        pools = _shared_out(read, sizes, seed)
        if tuple(map(len, pools)) == sizes:
            return pools
        if len(read) < upto or upto == MOST_READ:
            raise ValueError(_too_few(task.name, read, sizes, most_level))
        upto = min(2 * upto, MOST_READ)


class _Read(NamedTuple):
    """A problem of the stream; `easy` where the labelled pool may have it."""

    problem: Problem
    key: bytes
    easy: bool


def _shared_out(read: Sequence[_Read], sizes: tuple[int, int, int], seed: int) -> Pools:
    """The pools as far as these problems fill them."""
    easy = Counter(r.key for r in read if r.easy)
    hard = Counter(r.key for r in read if not r.easy)
    sft, raft, held_out = sizes
    # The two other pools have their part of the easy problems too, as far as the labelled pool can spare it.
    spare = max(easy.total() - sft, 0)
    part = min(easy.total() / max(len(read), 1), spare / max(raft + held_out, 1))
    owner = _cut(easy, (sft, raft * part, held_out * part), seed) | _cut(hard, (0, raft, held_out), seed)
    taken: tuple[list[Problem], ...] = ([], [], [])
    for r in read:
        pool = owner[r.key]
        if len(taken[pool]) < sizes[pool]:
            taken[pool].append(r.problem)
    return Pools(*map(tuple, taken))


def _cut(counts: Counter[bytes], shares: tuple[float, float, float], seed: int) -> dict[bytes, int]:
    """Key -> which of the three pools owns it: the keys in the order of their hashes, cut in proportion to `shares`."""
    order = sorted(counts, key=lambda key: hashlib.sha256(b"%d %b" % (seed, key)).digest())
    scale = counts.total() / (sum(shares) or 1)
    first_end, second_end = shares[0] * scale, (shares[0] + shares[1]) * scale
    owner, before = {}, 0
    for key in order:
        owner[key] = 0 if before < first_end else 1 if before < second_end else 2
        before += counts[key]
    return owner


def _too_few(name: str, read: Sequence[_Read], sizes: tuple[int, int, int], sft_level: int) -> str:
    sft, raft, held_out = sizes
    easy = sum(r.easy for r in read)
    looked_at = f"the first {len(read)} problems" if len(read) == MOST_READ else f"all {len(read)} problems"
    if easy < sft and easy < len(read):
        return (
            f"{name}: of {looked_at} only {easy} are of level {sft_level} or below, too few for {sft} labelled ones; "
            "lower sft, or raise sft_level."
        )
    groups = len({r.key for r in read})
    grouped = "" if groups == len(read) else f", in {groups} groups that ask the same,"
    return (
        f"{name}: {looked_at}{grouped} are too few for disjoint pools of {sft}, {raft} and {held_out}; "
        "lower sft, raft or held_out, or raise the size of the task."
    )
