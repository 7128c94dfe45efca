"""What a task of reward-ranked fine-tuning is: problems, a verifier of answers, and what tells problems apart.

A verifier reads bytes and never runs them. Left out: partial credit; an answer is right or it is not.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple, Protocol

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
