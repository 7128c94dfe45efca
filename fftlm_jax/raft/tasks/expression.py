"""Arithmetic in bytes: reads an expression of whole numbers, `+`, `-`, `*` and parentheses, and finds its value.

Shunting-yard with a stack of values and one of operators: no recursion, and nothing of the text is ever executed.
Left out: signs, division, spaces, numbers with leading zeros.
"""

from typing import NamedTuple

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
