"""Tasks of reward-ranked fine-tuning, each with its problems and its verifier, and the pools these are dealt to.

A new task is a new module in this folder with a table `TASKS` of its own: name -> function of the size.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable

from fftlm_jax.raft.tasks.task import END, Pools, Problem, Task, Verdict, fingerprint, judge, make_pools

TASKS: dict[str, Callable[[int], Task]] = {}
for _module in pkgutil.iter_modules(__path__):
    TASKS |= getattr(importlib.import_module(f"{__name__}.{_module.name}"), "TASKS", {})
TASKS = dict(sorted(TASKS.items()))


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
    if not reversed_answer:
        return TASKS[name](size)
    if name != "add":
        raise ValueError(f"reversed_answer is for add, not for {name}; leave it out.")
    return TASKS[name](size, reversed_answer)
