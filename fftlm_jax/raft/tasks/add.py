"""Addition of two numbers of fixed width: `12+07=` is answered by `019`, or `910` with the last digit first."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from fftlm_jax.raft.tasks.shuffled import shuffled
from fftlm_jax.raft.tasks.task import END, ERROR, Problem, Verdict, check_size, foreign, verdict_on_digits


def operands(prompt: bytes) -> tuple[bytes, bytes] | None:
    """The two strings of digits, equally long, of a prompt such as `12+07=`; None for anything else."""
    length = len(prompt) // 2 - 1
    first, second = prompt[:length], prompt[length + 1 : -1]
    if not (first.isdigit() and second.isdigit()) or prompt != b"%b+%b=" % (first, second):
        return None
    return (first, second) if len(first) == len(second) else None


def sum_of(first: bytes, second: bytes, reversed_answer: bool) -> bytes:
    """Their sum with one digit more than they have, and the end byte."""
    digits = b"%0*d" % (len(first) + 1, int(first) + int(second))
    return (digits[::-1] if reversed_answer else digits) + END


@dataclasses.dataclass(frozen=True)
class Add:
    """Sums of two numbers with leading zeros.

    Attributes:
        digits: of each number; the sum has one more.
        reversed_answer: the last digit of the sum comes first, as one adds by hand.
    """

    name: ClassVar[str] = "add"
    version: ClassVar[int] = 1
    multi_answer: ClassVar[bool] = False
    levels: ClassVar[int] = 1

    digits: int = 2
    reversed_answer: bool = False

    def __post_init__(self) -> None:
        check_size(self.name, "digits", self.digits, range(1, 17))

    @property
    def longest_prompt(self) -> int:
        return 2 * self.digits + 2

    @property
    def longest_answer(self) -> int:
        return self.digits + 2

    def problems(self, seed: int) -> Iterator[Problem]:
        """Every pair of numbers, shuffled by the seed."""
        numbers = 10**self.digits
        for index in shuffled(numbers**2, f"{self.name} {seed}"):
            first, second = (b"%0*d" % (self.digits, number) for number in divmod(index, numbers))
            yield Problem(b"%b+%b=" % (first, second), sum_of(first, second, self.reversed_answer))

    def key(self, prompt: bytes) -> bytes:
        """The operands in order: both ways to write a sum share it."""
        return b"+".join(sorted(self._read(prompt)))

    def level(self, prompt: bytes) -> int:
        self._read(prompt)
        return 1

    def verify(self, prompt: bytes, completion: bytes) -> Verdict:
        """Right if it is the sum in its fixed width."""
        try:
            first, second = self._read(prompt)
        except ValueError:
            return ERROR
        return verdict_on_digits(completion, sum_of(first, second, self.reversed_answer))

    def _read(self, prompt: bytes) -> tuple[bytes, bytes]:
        pair = operands(prompt)
        if pair is None or len(pair[0]) != self.digits:
            raise foreign(self.name, prompt)
        return pair
