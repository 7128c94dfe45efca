"""What a task is, and the three pools of problems that share no question.

A verifier reads bytes and never runs them. Left out: partial credit; an answer is right or it is not.

Three pools of problems that share no question: labelled ones, ones to sample from, and held-out ones.

Problems are read from the task's stream, twice as many as the pools take, and on, up to a bound, while these are not
enough. Their keys are put into an order by a hash of the seed and the key, and this order is cut in proportion to the
sizes of the pools; each pool then takes the first problems of the stream whose keys are its own. Which pool a problem
belongs to is thus a property of its key. The order is cut twice: once for problems of levels that the labelled pool may
hold, and once, between the two others, for the rest.
"""

import dataclasses
import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


def shuffled(count: int, seed: str) -> Iterator[int]:
    """Every number below `count` once, in an order that is a function of the seed alone.

    A Fisher-Yates shuffle of a list of which only the entries that were moved are kept: `count` may be astronomical.
    """
    rng = random.Random(seed)  # A text is hashed with SHA-512, so that it means the same in every process.
    moved: dict[int, int] = {}
    for place in range(count):
        chosen = rng.randrange(place, count)
        yield moved.get(chosen, chosen)
        here = moved.pop(place, place)
        if chosen != place:
            moved[chosen] = here


END = b"\n"  # Ends every answer.


class Verdict(NamedTuple):
    """What a verifier says of a completion.

    Attributes:
        ok: whether the answer is right.
        reason: `right`; `wrong`: of the right form, but not true; `malformed`; `truncated`: without its end byte;
            `error`: the verifier could not decide, which is never counted as a wrong answer.
    """

    ok: bool
    reason: str


RIGHT = Verdict(True, "right")
WRONG = Verdict(False, "wrong")
MALFORMED = Verdict(False, "malformed")
TRUNCATED = Verdict(False, "truncated")
ERROR = Verdict(False, "error")


class Problem(NamedTuple):
    """A question, and a right answer to it, end byte included."""

    prompt: bytes
    answer: bytes


class Task(Protocol):
    """A kind of question: a frozen dataclass whose fields are its parameters.

    Attributes:
        name: of the task.
        version: raised whenever problems or verdicts change for the same parameters.
        multi_answer: whether a question may have several right answers.
        longest_prompt, longest_answer: bytes, the answer's end byte included.
        levels: how many levels of difficulty there are; 1 for a task without.
    """

    name: str
    version: int
    multi_answer: bool
    longest_prompt: int
    longest_answer: int
    levels: int

    def problems(self, seed: int) -> Iterator[Problem]:
        """Problems with distinct prompts, in an order that is a function of the seed alone; they may come to an end."""

    def key(self, prompt: bytes) -> bytes:
        """Equal for prompts that ask the same thing, such as 12+07 and 07+12. ValueError for another task's prompt."""

    def level(self, prompt: bytes) -> int:
        """Difficulty, from 1 to `levels`; the same for prompts of the same key."""

    def verify(self, prompt: bytes, completion: bytes) -> Verdict:
        """Judges a completion: exactly one answer, then the end byte, then nothing. Any bytes are judged."""


def judge(task: Task, prompt: bytes, completion: bytes) -> Verdict:
    """The verifier's verdict; an exception in it is an `error`, for no sample may end a run."""
    try:
        return task.verify(prompt, completion)
    except Exception:
        return ERROR


def fingerprint(task: Task) -> str:
    """SHA-256 of the name, version and parameters: equal for tasks that judge alike, in every process."""
    identity = {"name": task.name, "version": task.version, "parameters": dataclasses.asdict(task)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def verdict_on_digits(completion: bytes, expected: bytes) -> Verdict:
    """Verdict where one string of ASCII digits and the end byte is right and no other.

    Digits of other scripts are no digits here: in UTF-8 they are bytes from 128 on.
    """
    if END not in completion:
        return TRUNCATED
    if len(completion) != len(expected) or not completion.endswith(END) or not completion[:-1].isdigit():
        return MALFORMED
    return RIGHT if completion == expected else WRONG


def check_size(task: str, unit: str, size: int, allowed: range) -> None:
    """Refuses a size that the task does not have.

    Raises:
        ValueError: one sentence.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size not in allowed:
        raise ValueError(f"{task} takes {unit} from {allowed[0]} to {allowed[-1]}, not {size!r}.")


def foreign(task: str, prompt: bytes) -> ValueError:
    """What is raised for a prompt that the task did not make."""
    return ValueError(f"{prompt!r} is no prompt of {task}.")


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
