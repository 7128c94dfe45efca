"""Rules about what follows a raise: oscillation, the spike and its recovery, and the learning rate in force there."""

from collections.abc import Iterator

import numpy as np

from fftlm_jax.training.diagnostics.finding import HEALTHY, WARNING, Facts, Finding
from fftlm_jax.training.diagnostics.noise import longest_alternation, mean_error, measured_noise
from fftlm_jax.training.diagnostics.stream import Raised, Stream, Stretch, stretches

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
