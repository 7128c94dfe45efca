"""What the learning rate does when a cutoff is raised: two independent knobs.

The source documents disagree: the plateau rule restarts to the full peak, the physics of the learning rate cuts it.
A fixed factor is answered at the raise itself. The adaptive one (the latter document's strategy 3) first looks at how
much the loss rose, and answers some steps later.
"""

from typing import NamedTuple

# (a spike above this many nats, factor), the highest first; a smaller one gets the gentle factor.
_SPIKE_FACTORS = ((0.3, 0.5), (0.1, 0.7))
_GENTLE_FACTOR = 0.9


class Answer(NamedTuple):
    """The events that the sawtooth transform is given at the first step after a raise."""

    restart: bool = False
    pulse: bool = False
    reduce_by: float = 1.0

    def reduced_by(self, factor: float) -> "Answer":
        """The same answer with one more reduction."""
        return self._replace(reduce_by=self.reduce_by * factor)


def answer_to_raise(restart: str, factor: float | str, old_cutoff: int, new_cutoff: int) -> Answer:
    """The learning rate's answer to a raise from `old_cutoff` to `new_cutoff` (bins).

    Args:
        restart: `tooth` (a new cosine from the peak to the stage's end), `pulse` (the peak for one step) or `none`.
        factor: multiplied into the learning rate for good: a number, `sqrt_ratio` = (old/new)^0.5, `inverse_ratio` =
            old/new, or `adaptive`, which waits for `adaptive_factor`.
    """
    ratio = old_cutoff / new_cutoff
    named = {"sqrt_ratio": ratio**0.5, "inverse_ratio": ratio, "adaptive": 1.0}
    reduce_by = named[factor] if isinstance(factor, str) else float(factor)
    return Answer(restart == "tooth", restart == "pulse", reduce_by)


def adaptive_factor(spike: float) -> float:
    """Factor for the learning rate by how much the mean loss rose at a raise (nats; negative if it fell)."""
    return next((factor for height, factor in _SPIKE_FACTORS if spike > height), _GENTLE_FACTOR)
