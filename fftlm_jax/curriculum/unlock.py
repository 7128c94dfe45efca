"""What the learning rate does when a cutoff is raised: two independent knobs.

The source documents disagree: the plateau rule restarts to the full peak, the physics of the learning rate cuts it.
"""

from typing import NamedTuple


class Answer(NamedTuple):
    """The events that the sawtooth transform is given at the first step after a raise."""

    restart: bool = False
    pulse: bool = False
    reduce_by: float = 1.0


def answer_to_raise(restart: str, factor: float | str, old_cutoff: int, new_cutoff: int) -> Answer:
    """The learning rate's answer to a raise from `old_cutoff` to `new_cutoff` (bins).

    Args:
        restart: `tooth` (a new cosine from the peak to the stage's end), `pulse` (the peak for one step) or `none`.
        factor: multiplied into the learning rate for good: a number, `sqrt_ratio` = (old/new)^0.5 or
            `inverse_ratio` = old/new.
    """
    ratio = old_cutoff / new_cutoff
    named = {"sqrt_ratio": ratio**0.5, "inverse_ratio": ratio}
    reduce_by = named[factor] if isinstance(factor, str) else float(factor)
    return Answer(restart == "tooth", restart == "pulse", reduce_by)
