"""When a rule could raise at the earliest: its controller, fed with losses that never fall."""

import dataclasses
import math

from fftlm_jax.curriculum.controller import Controller, Raise, Rule


def earliest_raises(rule: Rule, cutoff: int, steps: int) -> list[Raise]:
    """The raises of a run of `steps` steps from `cutoff` (bins) on, if every check finds a plateau.

    A schedule's raises are exactly these, whatever the losses.
    """
    controller = Controller(dataclasses.replace(rule, threshold=math.inf), cutoff)
    for step in range(steps):
        if controller.upcoming_cutoff() is None:
            break
        controller.check(step)
        controller.record(1.0)
    return controller.raises
