"""Tasks of reward-ranked fine-tuning, each with its problems and its verifier, and the pools these are dealt to."""

import difflib
from collections.abc import Callable

from fftlm_jax.raft.tasks.countdown import Countdown
from fftlm_jax.raft.tasks.digits import Add, AddLong, Sort
from fftlm_jax.raft.tasks.dyck import Dyck
from fftlm_jax.raft.tasks.task import END, Pools, Problem, Task, Verdict, fingerprint, judge, make_pools

TASKS: dict[str, Callable[[int], Task]] = {
    "add": Add,
    "add_long": AddLong,
    "sort": Sort,
    "dyck": Dyck,
    "countdown": Countdown,
}


def make_task(name: str, size: int, reversed_answer: bool = False) -> Task:
    """A task of a given size.

    Args:
        name: one of `TASKS`.
        size: digits (add, sort), digits of the longest numbers (add_long), bytes (dyck), given numbers (countdown).
        reversed_answer: of add: the last digit of the sum comes first.

    Raises:
        ValueError: one sentence, for a task or size that there is not.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TASKS)}."
        raise ValueError(f"There is no task {name!r}; {hint}")
    if name == "add":
        return Add(size, reversed_answer)
    if reversed_answer:
        raise ValueError(f"reversed_answer is for add, not for {name}; leave it out.")
    return TASKS[name](size)
