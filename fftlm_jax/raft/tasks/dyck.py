"""Balanced brackets: the beginning `([](` is completed, for example by `))()[][]`, to a text of a given length.

Beginnings and answers are numbered, by counting in how many ways brackets can go on from a depth, so that both are
drawn evenly from all there are.
"""

import dataclasses
import functools
import random
from collections.abc import Iterator
from typing import ClassVar

from fftlm_jax.raft.tasks.task import (
    END,
    ERROR,
    MALFORMED,
    RIGHT,
    TRUNCATED,
    WRONG,
    Problem,
    Verdict,
    check_size,
    foreign,
    shuffled,
)

_CLOSER = {ord("("): ord(")"), ord("["): ord("]")}
_BRACKETS = frozenset(b"()[]")


@functools.cache
def _ways(depth: int, more: int, balanced: bool) -> int:
    """The number of ways in which `more` brackets can follow where `depth` are open; all closed, if `balanced`."""
    if more == 0:
        return int(depth == 0 or not balanced)
    closing = _ways(depth - 1, more - 1, balanced) if depth else 0
    return closing + len(_CLOSER) * _ways(depth + 1, more - 1, balanced)


def _still_open(text: bytes) -> bytes | None:
    """The closers that a text still waits for, the innermost last; None if a byte closes what is not open."""
    waiting = bytearray()
    for bracket in text:
        if bracket in _CLOSER:
            waiting.append(_CLOSER[bracket])
        elif not waiting or waiting.pop() != bracket:
            return None
    return bytes(waiting)


def _spell(waiting: bytes, more: int, balanced: bool, number: int) -> bytes:
    """The continuation of this number among the `_ways` of a text that waits for some closers."""
    written, stack = bytearray(), bytearray(waiting)
    for left in range(more - 1, -1, -1):
        choices = [*_CLOSER, stack[-1]] if stack else [*_CLOSER]
        for bracket in choices:
            depth = len(stack) + (1 if bracket in _CLOSER else -1)
            ways = _ways(depth, left, balanced)
            if number < ways:
                break
            number -= ways
        written.append(bracket)
        if bracket in _CLOSER:
            stack.append(_CLOSER[bracket])
        else:
            stack.pop()
    return bytes(written)


@dataclasses.dataclass(frozen=True)
class Dyck:
    """Texts of two kinds of brackets, three eighths given, the rest to be written; every balanced text is right.

    Attributes:
        length: bytes of the whole text; even.
    """

    name: ClassVar[str] = "dyck"
    version: ClassVar[int] = 1
    multi_answer: ClassVar[bool] = True
    levels: ClassVar[int] = 1

    length: int = 16

    def __post_init__(self) -> None:
        check_size(self.name, "an even length", self.length, range(8, 257, 2))

    @property
    def longest_prompt(self) -> int:
        return 3 * self.length // 8

    @property
    def longest_answer(self) -> int:
        return self.length - self.longest_prompt + 1

    def problems(self, seed: int) -> Iterator[Problem]:
        """Every beginning, shuffled by the seed, with one of its completions."""
        begin, rest = self.longest_prompt, self.length - self.longest_prompt
        for index in shuffled(_ways(0, begin, balanced=False), f"{self.name} {seed}"):
            prompt = _spell(b"", begin, balanced=False, number=index)
            waiting = self._read(prompt)
            ways = _ways(len(waiting), rest, balanced=True)
            number = random.Random(f"{self.name} {seed} {prompt.decode()}").randrange(ways)
            yield Problem(prompt, _spell(waiting, rest, balanced=True, number=number) + END)

    def key(self, prompt: bytes) -> bytes:
        """The beginning itself."""
        self._read(prompt)
        return prompt

    def level(self, prompt: bytes) -> int:
        self._read(prompt)
        return 1

    def verify(self, prompt: bytes, completion: bytes) -> Verdict:
        """Right if beginning and completion are balanced and of the task's length together."""
        try:
            self._read(prompt)
        except ValueError:
            return ERROR
        if END not in completion:
            return TRUNCATED
        written = completion.removesuffix(END)
        if len(completion) != self.longest_answer or not set(written) <= _BRACKETS:
            return MALFORMED
        return RIGHT if _still_open(prompt + written) == b"" else WRONG

    def _read(self, prompt: bytes) -> bytes:
        waiting = _still_open(prompt)
        if len(prompt) != self.longest_prompt or waiting is None:
            raise foreign(self.name, prompt)
        return waiting


TASKS = {"dyck": Dyck}
