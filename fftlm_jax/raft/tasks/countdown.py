"""Task `countdown`: reach a target with given numbers; reads expressions and finds what is reachable.

Arithmetic in bytes: reads an expression of whole numbers, `+`, `-`, `*` and parentheses, and finds its value.

Shunting-yard with a stack of values and one of operators: no recursion, and nothing of the text is ever executed.
Left out: signs, division, spaces, numbers with leading zeros.

Reaching a target: `3 5 8>24=` is answered by `3*8`, or by any other expression of the given numbers worth 24.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

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

_RANK = {ord("+"): 1, ord("-"): 1, ord("*"): 2}
_OPEN, _CLOSE = ord("("), ord(")")


class Evaluated(NamedTuple):
    """The value of an expression and the numbers it was made of, in order."""

    value: int
    numbers: tuple[int, ...]


def tokens(text: bytes) -> list[bytes] | None:
    """Numbers, operators and parentheses one by one; None where there is anything else."""
    found: list[bytes] = []
    for place, byte in enumerate(text):
        digit = text[place : place + 1]
        if digit.isdigit():
            if place and text[place - 1 : place].isdigit():
                if found[-1] == b"0":
                    return None
                found[-1] += digit
            else:
                found.append(digit)
        elif byte in _RANK or byte in (_OPEN, _CLOSE):
            found.append(digit)
        else:
            return None
    return found


def evaluate(text: bytes) -> Evaluated | None:
    """Value and numbers of an expression; None for bytes that are none. The caller bounds the length."""
    values: list[int] = []
    operators: list[int] = []
    numbers: list[int] = []
    operand_next = True
    for token in tokens(text) or ():
        symbol = token[0]
        if operand_next:
            if token.isdigit():
                numbers.append(int(token))
                values.append(numbers[-1])
                operand_next = False
            elif symbol == _OPEN:
                operators.append(symbol)
            else:
                return None
        elif symbol in _RANK:
            while operators and operators[-1] != _OPEN and _RANK[operators[-1]] >= _RANK[symbol]:
                _apply(operators.pop(), values)
            operators.append(symbol)
            operand_next = True
        elif symbol == _CLOSE:
            while operators and operators[-1] != _OPEN:
                _apply(operators.pop(), values)
            if not operators:
                return None
            operators.pop()
        else:
            return None
    if operand_next or _OPEN in operators:
        return None
    while operators:
        _apply(operators.pop(), values)
    return Evaluated(values[0], tuple(numbers))


def _apply(operator: int, values: list[int]) -> None:
    right, left = values.pop(), values.pop()
    if operator == ord("+"):
        values.append(left + right)
    elif operator == ord("-"):
        values.append(left - right)
    else:
        values.append(left * right)


_SUM, _PRODUCT = 0, 1  # What a text is at its outermost: a sum needs parentheses as a factor or behind a minus.
Texts = dict[tuple[int, int], bytes]  # (value, _SUM or _PRODUCT) -> the shortest text found.


@functools.cache
def reachable(numbers: tuple[int, ...], greatest: int) -> dict[int, bytes]:
    """Value from 1 to `greatest` -> its shortest expression (of equally short ones the first in the order of bytes)."""
    of_subset: dict[int, Texts] = {}
    for subset in range(1, 1 << len(numbers)):
        texts: Texts = {}
        if subset & (subset - 1) == 0:
            number = numbers[subset.bit_length() - 1]
            texts[number, _PRODUCT] = b"%d" % number
        part = (subset - 1) & subset
        while part:  # Every non-empty part with a non-empty rest.
            _join(of_subset[part], of_subset[subset - part], texts)
            part = (part - 1) & subset
        of_subset[subset] = texts
    best: dict[int, bytes] = {}
    for texts in of_subset.values():
        for (value, _), text in texts.items():
            if 1 <= value <= greatest:
                best[value] = min(best.get(value, text), text, key=_rank)
    return best


def _join(lefts: Texts, rights: Texts, into: Texts) -> None:
    for (a, left_kind), left in lefts.items():
        for (b, right_kind), right in rights.items():
            factor = b"(%b)" % right if right_kind == _SUM else right
            _offer(into, (a + b, _SUM), b"%b+%b" % (left, right))
            _offer(into, (a - b, _SUM), b"%b-%b" % (left, factor))
            _offer(into, (a * b, _PRODUCT), b"%b*%b" % (b"(%b)" % left if left_kind == _SUM else left, factor))


def _offer(texts: Texts, reached: tuple[int, int], text: bytes) -> None:
    if reached not in texts or _rank(text) < _rank(texts[reached]):
        texts[reached] = text


def _rank(text: bytes) -> tuple[int, bytes]:
    return len(text), text


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


TASKS = {"countdown": Countdown}
