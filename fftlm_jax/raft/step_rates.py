"""The learning rate within a cycle, known before its training since the number of its steps is.

Cycles have few steps, and a warm-up of fixed length eats them: with 10 steps of warm-up from 0 and a line back to 0, a
cycle of 2 steps trains at a twentieth of its rate and one of a single step not at all. So warm-up is a tenth of the
steps at most, and no step is at 0.
"""

import numpy as np


def step_rates(lr: float, steps: int, *, warmup: int = 0, decay: bool = False) -> np.ndarray:
    """Learning rate of every step of a cycle, float64 [steps].

    Args:
        lr: of the cycle.
        steps: of the cycle.
        warmup: steps of rising, cut to a tenth of `steps`: step s is at lr * (s + 1) / (warmup + 1).
        decay: whether the steps after them fall in a line, the first at lr and the one after the last at 0.
    """
    warmup = min(warmup, steps // 10)
    step = np.arange(steps)
    falling = 1 - (step - warmup) / (steps - warmup) if decay else np.ones(steps)
    return lr * np.where(step < warmup, (step + 1) / (warmup + 1), falling)


def epochs_for(steps_per_epoch: int, *, epochs: int, min_steps: int, max_epochs: int) -> int:
    """Passes over what was kept: `epochs`, or as many as make `min_steps` steps, but no more than `max_epochs`."""
    return min(max(epochs, -(-min_steps // steps_per_epoch)), max_epochs)
