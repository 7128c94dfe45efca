"""Rules about the loss: what follows a raise, and how fast it falls."""

from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

from fftlm_jax.doctor.evidence import (
    HEALTHY,
    WARNING,
    Facts,
    Finding,
    Raised,
    Stream,
    Stretch,
    longest_alternation,
    mean_error,
    measured_noise,
    rule,
    stretches,
)

# Four swings up and down in turn, each beyond 2.5 standard deviations of a difference: in white noise, five losses in a
# row that lie 1.8 standard deviations high and low in turn; 3 in a million places, 13 with the heaviest tails measured.
_SWINGS, _SWING_SIZE = 4, 2.5
_BLOCKS = (1, 2, 5, 10)  # Losses averaged before looking, so that slower swings than step to step are seen as well.
_LEVEL = 50  # Losses that make a level: the documents' plateau window.
_SPIKE = 10  # Losses that make a spike.
_SURE = 4.0  # Standard errors, 1 in 30,000: the tails of small batches are heavier than a Gaussian's.
_NOTABLE = 0.01  # Of the loss. Less would be significant in long runs, and of no importance.
_LOW_LR = 1 / 3  # Of the peak. The documents' example is at a tenth; their own reductions leave half or more.
_LRS = 10


def noise_of(stretch: Stretch, facts: Facts) -> float | None:
    """The noise before a raise; where too little is known of that, what the stretch itself or the facts have of it."""
    before = measured_noise(stretch.before)
    if before is not None:
        return before
    known = [noise for noise in (measured_noise(stretch.losses), facts.assumed_noise) if noise is not None]
    return max(known, default=None)


def swings_of(stretch: Stretch, facts: Facts) -> np.ndarray:
    """The longest run of swings, up and down in turn, that noise does not explain; empty for fewer than four.

    Noise grows while a model learns its first things, so the beginning of a run has no noise to compare with.
    """
    best, noise = np.array([]), noise_of(stretch, facts)
    if noise is None or (stretch.raised is None and facts.assumed_noise is None):
        return best
    for size in _BLOCKS:
        blocks = stretch.losses[: len(stretch.losses) // size * size].reshape(-1, size).mean(axis=1)
        run = longest_alternation(blocks, _SWING_SIZE * 2**0.5 * noise / size**0.5)
        best = run if len(run) > len(best) else best
    return best if len(best) >= _SWINGS else np.array([])


@rule("oscillation")
def oscillation(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """Loss that bounces up and down in turn, well above the noise before: steps too large for the new detail."""
    for stretch in stretches(stream, facts.curriculum.steps_per_epoch):
        swings = swings_of(stretch, facts)
        if len(swings):
            size, noise = float(np.abs(swings).mean()), noise_of(stretch, facts)
            change = "lr.factor=0.5 (half the learning rate at a raise)" if stretch.raised else "lr.base: halve it"
            yield Finding(
                "oscillation",
                WARNING,
                stretch.begin,
                f"{stretch.place} the loss swings up and down {len(swings)} times in a row, by {size:.3f} on average, "
                f"where noise scatters by {noise:.3f}: the learning rate is too high there",
                {"swings": len(swings), "mean_swing": size, "noise": noise},
                change,
            )


@rule("unrecovered_spike")
def recovery(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """A spike at a raise is expected; within an epoch the loss must be back at its level before."""
    for stretch in stretches(stream, facts.curriculum.steps_per_epoch):
        noise = noise_of(stretch, facts)
        if noise is None or not len(stretch.before) or not len(stretch.losses):
            continue
        before = stretch.before[-_LEVEL:]
        level = float(before.mean())
        late = stretch.losses[-min(_LEVEL, max(len(stretch.losses) // 2, 1)) :]
        rise = float(late.mean()) - level
        evidence = {"level_before": level, "spike": spike_of(stretch), "noise": noise}
        if stretch.is_whole and rise > _least_rise(noise, level, len(late), len(before)):
            yield Finding(
                "unrecovered_spike",
                WARNING,
                stretch.begin,
                f"{stretch.place} the loss is still {rise:.3f} above its level before ({level:.3f}) an epoch later",
                {**evidence, "rise_after_an_epoch": rise},
                "lr.restart='tooth'" if facts.restart != "tooth" else "lr.factor=0.5 (half the learning rate)",
            )
        elif is_spiked(stretch, noise):
            age = _recovered_at(stretch, level)
            if age is not None:
                yield Finding(
                    "recovered_spike",
                    HEALTHY,
                    stretch.begin,
                    f"{stretch.place} the loss rose by {spike_of(stretch):.3f} and was back within {age} steps",
                    {**evidence, "steps": age},
                )


def spike_of(stretch: Stretch) -> float:
    """How far the first losses after a raise lie above the level before it, in nats."""
    return float(_first(stretch).mean() - stretch.before[-_LEVEL:].mean())


def is_spiked(stretch: Stretch, noise: float) -> bool:
    """Whether the loss is significantly higher right after a raise than before it."""
    if not len(stretch.before) or not len(stretch.losses):
        return False
    before = stretch.before[-_LEVEL:]
    return spike_of(stretch) > _least_rise(noise, float(before.mean()), len(_first(stretch)), len(before))


def _first(stretch: Stretch) -> np.ndarray:
    """The losses of the first steps; the first line of a log that has few."""
    count = int(np.searchsorted(stretch.ages, _SPIKE, side="right"))
    return stretch.losses[: max(count, 1)]


def _least_rise(noise: float, level: float, *counts: int) -> float:
    return max(_SURE * mean_error(noise, *counts), _NOTABLE * level)


def _recovered_at(stretch: Stretch, level: float) -> int | None:
    """The age at which a mean of neighbouring losses is first no higher than `level`."""
    size = len(_first(stretch))
    for end in range(size, len(stretch.losses) + 1):
        if stretch.losses[end - size : end].mean() <= level:
            return int(stretch.ages[end - 1])
    return None


@rule("low_learning_rate")
def low_learning_rate(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """A learning rate far below its peak right after a raise: the stages are not aligned with the raises."""
    scale = 1.0
    for raised in stream.raises:
        scale *= facts.reduction(raised.old, raised.new)
        lr, peak = _lr_after(stream, raised), facts.peak(raised.step) * scale
        if lr is not None and lr < _LOW_LR * peak:
            change = "lr.stages: let a stage begin where raises do"
            if facts.restart == "tooth":
                change = "lr.base: a restart should have reached the peak; compare it with the run's own"
            yield Finding(
                "low_learning_rate",
                WARNING,
                raised.step,
                f"right after the raise {raised.old} -> {raised.new} at step {raised.step} the learning rate is "
                f"{lr:.1e}, {lr / peak:.0%} of the peak: too low to learn the new detail (stages not aligned?)",
                {"lr": lr, "peak": peak},
                change,
            )


def _lr_after(stream: Stream, raised: Raised) -> float | None:
    """The mean learning rate of the first lines after a raise, without the one that a pulse would lift."""
    rows = stream.rows(raised.step + 1, raised.step + 100)
    lrs = stream.lrs[rows][:_LRS]
    lrs = lrs[np.isfinite(lrs)]
    return float(lrs.mean()) if len(lrs) else None


_SURE_DESCENT = 3.0  # Standard errors.
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


@rule()
def smooth_descent(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """A loss that falls significantly and does not oscillate."""
    for stretch in stretches(stream, facts.curriculum.steps_per_epoch):
        noise = noise_of(stretch, facts)
        half = len(stretch.losses) // 2
        if noise is None or not half or len(swings_of(stretch, facts)):
            continue
        first, second = float(stretch.losses[:half].mean()), float(stretch.losses[half:].mean())
        if first - second > _SURE_DESCENT * mean_error(noise, half, len(stretch.losses) - half):
            yield Finding(
                "smooth_descent",
                HEALTHY,
                stretch.begin,
                f"{stretch.place} the loss descends smoothly, from {first:.3f} to {second:.3f} (means of its halves)",
                {"first_half": first, "second_half": second, "noise": noise},
            )


@rule("slow_descent")
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
