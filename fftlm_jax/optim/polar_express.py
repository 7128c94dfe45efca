"""Coefficients of Polar Express: the composition of odd quintics that best maps [lower, 1] to 1.

Amsel et al., "The Polar Express" (arXiv 2505.16932). Each quintic `a x + b x^3 + c x^5` is the minimax approximation of
1 on the interval that the ones before it leave, found by Remez exchange. Computed here instead of written down, so that
every number of steps and every lower bound has its own best coefficients; the tests compare with the published digits.
"""

import functools

import numpy as np

Quintic = tuple[float, float, float]


@functools.cache
def polar_express_coefficients(
    steps: int, *, lower: float = 1e-3, cushion: float = 0.02, safety: float = 1.02
) -> tuple[Quintic, ...]:
    """Coefficients (a, b, c) of each step.

    Args:
        steps: number of quintics, at least 1.
        lower: smallest singular value, relative to the norm, that is to arrive near 1.
        cushion: no interval is narrower than [cushion * upper, upper], since the best quintic for a wider one is too
            steep at 0 for finite precision.
        safety: every step but the last takes its argument divided by this, so that rounding cannot leave the interval.

    Returns:
        `steps` triples. The defaults are those of the modded-nanogpt speed runs; `cushion=0.02407327424182761` and
        `safety=1` give the table of the paper, which divides by 1.01 afterwards.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    upper, triples = 1.0, []
    for step in range(steps):
        a, b, c = _minimax_quintic(max(lower, cushion * upper), upper)
        # The cushion centres the image of a narrower interval around 1; this centres the image of the true one.
        centre = (_evaluate(a, b, c, lower) + _evaluate(a, b, c, upper)) / 2
        margin = safety if step < steps - 1 else 1.0
        a, b, c = a / centre / margin, b / centre / margin**3, c / centre / margin**5
        triples.append((a, b, c))
        lower = _evaluate(a, b, c, lower)
        upper = 2 - lower
    return tuple(triples)


def _evaluate(a: float, b: float, c: float, x: float) -> float:
    return x * (a + x * x * (b + x * x * c))


def _minimax_quintic(lower: float, upper: float) -> Quintic:
    """The odd quintic with the smallest largest distance to 1 on [lower, upper]."""
    if lower / upper > 1 - 5e-6:
        # The exchange is singular on a point; this is its limit, the Newton-Schulz quintic.
        return 1.875 / upper, -1.25 / upper**3, 0.375 / upper**5
    inner = np.array([0.75 * lower + 0.25 * upper, 0.25 * lower + 0.75 * upper])
    previous = np.inf
    for _ in range(100):
        points = np.array([lower, *inner, upper])
        # The error alternates in sign, with equal size, at the ends and at the two extrema between them.
        system = np.stack([points, points**3, points**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        if abs(previous - error) < 1e-15:
            break
        previous = error
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))
    return float(a), float(b), float(c)
