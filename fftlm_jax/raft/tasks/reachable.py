"""Which values some numbers reach by `+`, `-` and `*`, each number used at most once, and how each is written."""

import functools

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
