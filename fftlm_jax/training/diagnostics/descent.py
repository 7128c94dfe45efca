"""Rules about the pace of the loss: smooth descent, and descent that learning rates far too low make painfully slow."""

from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

from fftlm_jax.training.diagnostics.after_raise import is_spiked, noise_of, swings_of
from fftlm_jax.training.diagnostics.finding import HEALTHY, WARNING, Facts, Finding
from fftlm_jax.training.diagnostics.noise import mean_error
from fftlm_jax.training.diagnostics.stream import Stream, Stretch, stretches

_SURE = 3.0  # Standard errors.
# Losses fall by a power of the steps done, so by a like share each time these double: 8 to 27 % in the runs measured,
# 3 % in the documents' good examples, 0.05 to 0.2 % in their bad ones.
_LEAST_FALL = 0.01
_DOUBLINGS = 2  # That a stretch must span before its pace is judged.
_CONFIDENCE = 0.95
# A run from random weights is judged once. At half time a fitting learning rate has made most of the way: of the fall
# in the first 100 steps their second half brought 6 to 14 % in the runs measured, 16 % at a third of a fitting rate, 33
# % at a tenth of it, and half at a thirtieth and less, where the loss falls in a straight line: nothing but the size of
# the steps limits it there.
_STRAIGHT = 0.3
_FIRST_LOOK = 100  # Steps, or an epoch if that is longer.


def smooth_descent(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """A loss that falls significantly and does not oscillate."""
    for stretch in stretches(stream, facts.curriculum.steps_per_epoch):
        noise = noise_of(stretch, facts)
        half = len(stretch.losses) // 2
        if noise is None or not half or len(swings_of(stretch, facts)):
            continue
        first, second = float(stretch.losses[:half].mean()), float(stretch.losses[half:].mean())
        if first - second > _SURE * mean_error(noise, half, len(stretch.losses) - half):
            yield Finding(
                "smooth_descent",
                HEALTHY,
                stretch.begin,
                f"{stretch.place} the loss descends smoothly, from {first:.3f} to {second:.3f} (means of its halves)",
                {"first_half": first, "second_half": second, "noise": noise},
            )


def slow_descent(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """Progress, but barely: a run that starts in a straight line, or a loss that does not come down from a spike."""
    for stretch in stretches(stream, facts.curriculum.steps_per_epoch):
        if stretch.raised is None and facts.assumed_noise is None:
            yield from _slow_start(stream, facts) if facts.is_fresh else ()
        elif _ought_to_fall(stretch, facts) and (fall := largest_fall(stretch)) is not None and fall < _LEAST_FALL:
            yield Finding(
                "slow_descent",
                WARNING,
                stretch.begin,
                f"{stretch.place} the loss falls painfully slowly: by at most {fall:.1%} while the steps double "
                f"(from {stretch.losses[0]:.3f} to {stretch.losses[-1]:.3f}), so the learning rate is too low",
                {"fall_per_doubling_at_most": fall, "first": stretch.losses[0], "last": stretch.losses[-1]},
                "lr.restart='tooth' (the full peak at a raise)" if stretch.raised else "lr.base: raise it threefold",
            )


def _ought_to_fall(stretch: Stretch, facts: Facts) -> bool:
    """Whether the loss stands high for the time being: behind a spike, or as far as a log without a past can tell."""
    noise = noise_of(stretch, facts)
    if stretch.raised is None or not len(stretch.before):
        return facts.assumed_noise is not None
    return noise is not None and is_spiked(stretch, noise)


def largest_fall(stretch: Stretch) -> float | None:
    """Upper confidence bound of the share by which the loss falls while the steps double; None for too short a log.

    From a straight line through the losses over the logarithm of their age, and their own scatter about it.
    """
    if len(stretch.losses) < 3 or stretch.ages[-1] < 2**_DOUBLINGS * stretch.ages[0]:
        return None
    doublings = np.log2(stretch.ages)
    doublings -= doublings.mean()
    spread = float((doublings**2).sum())
    slope = float((doublings * stretch.losses).sum()) / spread
    freedom = len(stretch.losses) - 2
    scatter = float(((stretch.losses - stretch.losses.mean() - slope * doublings) ** 2).sum()) / freedom
    return float((stdtrit(freedom, _CONFIDENCE) * (scatter / spread) ** 0.5 - slope) / stretch.losses.mean())


def _slow_start(stream: Stream, facts: Facts) -> Iterator[Finding]:
    until = max(_FIRST_LOOK, facts.curriculum.steps_per_epoch)
    losses = stream.losses[stream.rows(0, until)]
    if len(losses) < until:
        return
    tenth = until // 10
    start, middle, end = losses[:3].mean(), losses[(until - tenth) // 2 :][:tenth].mean(), losses[-tenth:].mean()
    fall, late = float(start - end), float(middle - end)
    if fall < _LEAST_FALL * start or late > _STRAIGHT * fall:
        yield Finding(
            "slow_descent",
            WARNING,
            0,
            f"the first {until} steps brought the loss from {start:.3f} to {end:.3f}, {late:.3f} of it in their second "
            "half: it falls in a straight line, as it does when the learning rate is far too low",
            {"first": float(start), "middle": float(middle), "last": float(end)},
            "lr.base: raise it threefold",
        )
