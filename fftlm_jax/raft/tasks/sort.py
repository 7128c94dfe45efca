"""Sorting digits: `31524>` is answered by `12345`. Digits in order are not asked, so that an echo is no answer."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from fftlm_jax.raft.tasks.shuffled import shuffled
from fftlm_jax.raft.tasks.task import END, ERROR, Problem, Verdict, check_size, foreign, verdict_on_digits


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
