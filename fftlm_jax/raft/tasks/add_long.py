"""Addition of longer and longer numbers: `123+456=` is answered by `9750`, the last digit first, one digit more."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from fftlm_jax.raft.tasks.add import operands, sum_of
from fftlm_jax.raft.tasks.shuffled import shuffled
from fftlm_jax.raft.tasks.task import ERROR, Problem, Verdict, check_size, foreign, verdict_on_digits


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
