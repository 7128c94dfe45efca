"""Tasks on digits: addition (`add`), longer and longer addition (`add_long`), and sorting (`sort`).

Addition of two numbers of fixed width: `12+07=` is answered by `019`, or `910` with the last digit first.

Addition of longer and longer numbers: `123+456=` is answered by `9750`, the last digit first, one digit more.

Sorting digits: `31524>` is answered by `12345`. Digits in order are not asked, so that an echo is no answer.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from fftlm_jax.raft.tasks.task import END, ERROR, Problem, Verdict, check_size, foreign, shuffled, verdict_on_digits


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


@dataclasses.dataclass(frozen=True)
class AddLong:
    """Sums of two equally long numbers; their length is the level.

    Attributes:
        longest: digits of the longest numbers. Numbers of several digits do not begin with 0.
    """

    name: ClassVar[str] = "add_long"
    version: ClassVar[int] = 1
    multi_answer: ClassVar[bool] = False

    longest: int = 10

    def __post_init__(self) -> None:
        check_size(self.name, "digits of its longest numbers", self.longest, range(1, 101))

    @property
    def longest_prompt(self) -> int:
        return 2 * self.longest + 2

    @property
    def longest_answer(self) -> int:
        return self.longest + 2

    @property
    def levels(self) -> int:
        return self.longest

    def problems(self, seed: int) -> Iterator[Problem]:
        """One of every length in turn; a length whose problems have run out is passed over."""
        lengths = [self._of_length(length, seed) for length in range(1, self.longest + 1)]
        while lengths:
            problems = [next(length, None) for length in lengths]
            lengths = [length for length, problem in zip(lengths, problems) if problem is not None]
            yield from (problem for problem in problems if problem is not None)

    def _of_length(self, length: int, seed: int) -> Iterator[Problem]:
        least = 10 ** (length - 1) if length > 1 else 0
        numbers = 10**length - least
        for index in shuffled(numbers**2, f"{self.name} {length} {seed}"):
            first, second = (b"%d" % (least + number) for number in divmod(index, numbers))
            yield Problem(b"%b+%b=" % (first, second), sum_of(first, second, reversed_answer=True))

    def key(self, prompt: bytes) -> bytes:
        """The operands in order: both ways to write a sum share it."""
        return b"+".join(sorted(self._read(prompt)))

    def level(self, prompt: bytes) -> int:
        return len(self._read(prompt)[0])

    def verify(self, prompt: bytes, completion: bytes) -> Verdict:
        """Right if it is the sum, its last digit first."""
        try:
            first, second = self._read(prompt)
        except ValueError:
            return ERROR
        return verdict_on_digits(completion, sum_of(first, second, reversed_answer=True))

    def _read(self, prompt: bytes) -> tuple[bytes, bytes]:
        pair = operands(prompt)
        if pair is None or len(pair[0]) > self.longest or (len(pair[0]) > 1 and b"0" in (pair[0][:1], pair[1][:1])):
            raise foreign(self.name, prompt)
        return pair


@dataclasses.dataclass(frozen=True)
class Sort:
    """Digits in rising order, each as often as it was given.

    Attributes:
        digits: how many are given.
    """

    name: ClassVar[str] = "sort"
    version: ClassVar[int] = 1
    multi_answer: ClassVar[bool] = False
    levels: ClassVar[int] = 1

    digits: int = 5

    def __post_init__(self) -> None:
        check_size(self.name, "digits", self.digits, range(2, 65))

    @property
    def longest_prompt(self) -> int:
        return self.digits + 1

    @property
    def longest_answer(self) -> int:
        return self.digits + 1

    def problems(self, seed: int) -> Iterator[Problem]:
        """Unsorted strings of digits, shuffled by the seed."""
        for index in shuffled(10**self.digits, f"{self.name} {seed}"):
            given = b"%0*d" % (self.digits, index)
            ordered = bytes(sorted(given))
            if given != ordered:
                yield Problem(given + b">", ordered + END)

    def key(self, prompt: bytes) -> bytes:
        """The digits themselves: problems that share them share their answer."""
        return bytes(sorted(self._read(prompt)))

    def level(self, prompt: bytes) -> int:
        self._read(prompt)
        return 1

    def verify(self, prompt: bytes, completion: bytes) -> Verdict:
        """Right if it is the digits in order."""
        try:
            given = self._read(prompt)
        except ValueError:
            return ERROR
        return verdict_on_digits(completion, bytes(sorted(given)) + END)

    def _read(self, prompt: bytes) -> bytes:
        if len(prompt) != self.digits + 1 or not prompt.endswith(b">") or not prompt[:-1].isdigit():
            raise foreign(self.name, prompt)
        return prompt[:-1]


TASKS = {"add": Add, "add_long": AddLong, "sort": Sort}
