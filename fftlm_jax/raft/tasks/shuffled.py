"""A random order of as many numbers as one likes, of which only those asked for are made."""

import random
from collections.abc import Iterator


def shuffled(count: int, seed: str) -> Iterator[int]:
    """Every number below `count` once, in an order that is a function of the seed alone.

    A Fisher-Yates shuffle of a list of which only the entries that were moved are kept: `count` may be astronomical.
    """
    rng = random.Random(seed)  # A text is hashed with SHA-512, so that it means the same in every process.
    moved: dict[int, int] = {}
    for place in range(count):
        chosen = rng.randrange(place, count)
        yield moved.get(chosen, chosen)
        here = moved.pop(place, place)
        if chosen != place:
            moved[chosen] = here
