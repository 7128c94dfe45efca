"""How much the loss scatters from step to step, and what can be told in spite of it.

The model throughout: a recorded loss is a smooth curve plus white Gaussian noise of standard deviation `sd`, which
comes from the texts of the batch. Measured (`python -m experiments.doctor_false_alarms`, experiments/LOG.md): lag-one
correlations lie within 0.14 of zero and kurtosis between 2.4 and 5; the noise of a learned model depends neither on the
loss nor on the length of a window (128 to 512 bytes), but only on how many windows a step has.
"""

import numpy as np

# Standard deviation of a step's loss in nats, times the root of its number of windows.
STDLIB_NOISE = {"next_byte": 0.45, "chunk": 0.80}  # Python's standard library, whose files differ much.
EVEN_NOISE = {"next_byte": 0.13, "chunk": 0.23}  # TinyShakespeare, an even text; the chunk's by the ratio above.
LEARNED_LOSS = {"next_byte": 2.0, "chunk": 4.8}  # Nats, of the runs measured when the noise had settled.

FEWEST_LOSSES = 40  # For a measured noise: it is known to 15 % then.
_MIDDLE = 3.290  # The middle 90 % of a Gaussian lie within this many standard deviations.


def measured_noise(losses: np.ndarray) -> float | None:
    """Standard deviation of single losses about a smooth curve, or None with fewer than `FEWEST_LOSSES`.

    From the differences of neighbours, which no trend reaches; from their middle 90 %, which no single spike does.
    """
    if len(losses) < FEWEST_LOSSES:
        return None
    low, high = np.quantile(np.diff(losses), (0.05, 0.95))
    return float(high - low) / (_MIDDLE * 2**0.5)


def improvement_error(noise: float, window: int, loss: float) -> float:
    """Standard error of the plateau rule's `improvement`: two means of `window` / 2 losses each, over the first."""
    return 2 * noise / window**0.5 / loss


def mean_error(noise: float, *counts: int) -> float:
    """Standard error of a difference of means of so many losses each (of one mean, given one count)."""
    return noise * sum(1 / count for count in counts) ** 0.5


def longest_alternation(values: np.ndarray, least: float) -> np.ndarray:
    """The longest run of neighbouring differences, each of size `least` or more, that alternate in sign (two at least).

    Empty if there is none.
    """
    swings = np.diff(values)
    is_big = np.abs(swings) >= least
    # Entry i: whether swing i + 1 turns swing i around.
    turns = is_big[1:] & is_big[:-1] & (swings[1:] * swings[:-1] < 0)
    ends = np.flatnonzero(~np.concatenate([[False], turns, [False]]))
    lengths = np.diff(ends) - 1
    longest = int(np.argmax(lengths)) if len(lengths) else 0
    if not len(lengths) or lengths[longest] == 0:
        return np.array([])
    return swings[ends[longest] : ends[longest] + lengths[longest] + 1]
