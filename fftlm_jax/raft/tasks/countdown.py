"""Reaching a target: `3 5 8>24=` is answered by `3*8`, or by any other expression of the given numbers worth 24."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from fftlm_jax.raft.tasks.expression import evaluate
from fftlm_jax.raft.tasks.reachable import reachable
from fftlm_jax.raft.tasks.shuffled import shuffled
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
)

_GREATEST = 9  # Given numbers are from 1 to this,
_TARGETS = 99  # and targets from 1 to this.


@dataclasses.dataclass(frozen=True)
class Countdown:
    """Expressions of `+`, `-`, `*` and parentheses in which every given number stands at most once.

    Attributes:
        numbers: how many are given, each from 1 to 9. Targets are from 1 to 99, can be reached and are not given.
    """

    name: ClassVar[str] = "countdown"
    version: ClassVar[int] = 1
    multi_answer: ClassVar[bool] = True
    levels: ClassVar[int] = 1

    numbers: int = 3

    def __post_init__(self) -> None:
        check_size(self.name, "numbers", self.numbers, range(2, 5))

    @property
    def longest_prompt(self) -> int:
        return 2 * self.numbers + 3

    @property
    def longest_answer(self) -> int:
        """All numbers, an operator and a pair of parentheses for each but one, and the end byte."""
        return 4 * self.numbers - 2

    def problems(self, seed: int) -> Iterator[Problem]:
        """Numbers and a target that they reach, drawn from the seed, with the expression that a search found."""
        for index in shuffled(_TARGETS * _GREATEST**self.numbers, f"{self.name} {seed}"):
            index, target = divmod(index, _TARGETS)
            target += 1
            given = []
            for _ in range(self.numbers):
                index, number = divmod(index, _GREATEST)
                given.append(number + 1)
            text = reachable(tuple(sorted(given)), _TARGETS).get(target)
            if text is not None and target not in given:
                yield Problem(b"%b>%d=" % (b" ".join(b"%d" % number for number in given), target), text + END)

    def key(self, prompt: bytes) -> bytes:
        """The numbers in order, and the target."""
        given, target = self._read(prompt)
        return b"%b>%d" % (b" ".join(b"%d" % number for number in sorted(given)), target)

    def level(self, prompt: bytes) -> int:
        self._read(prompt)
        return 1

    def verify(self, prompt: bytes, completion: bytes) -> Verdict:
        """Right if the expression is worth the target and uses each number at most once; it is parsed, never run."""
        try:
            given, target = self._read(prompt)
        except ValueError:
            return ERROR
        if END not in completion:
            return TRUNCATED
        if len(completion) > self.longest_answer or not completion.endswith(END):
            return MALFORMED
        found = evaluate(completion[:-1])
        if found is None:
            return MALFORMED
        return RIGHT if found.value == target and Counter(found.numbers) <= Counter(given) else WRONG

    def _read(self, prompt: bytes) -> tuple[tuple[int, ...], int]:
        left, _, right = prompt.partition(b">")
        digits, target = left.split(b" "), right.removesuffix(b"=")
        if (
            len(digits) != self.numbers
            or not all(len(digit) == 1 and digit in b"123456789" for digit in digits)
            or not (target.isdigit() and len(target) <= 2 and target[:1] != b"0" and right.endswith(b"="))
        ):
            raise foreign(self.name, prompt)
        return tuple(int(digit) for digit in digits), int(target)
