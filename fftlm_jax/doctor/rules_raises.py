"""Rules about when cutoffs are raised: too fast, too slow, by noise alone, and at a healthy pace."""

import math
from collections.abc import Iterator

import numpy as np

from fftlm_jax.curriculum import Rule
from fftlm_jax.doctor.evidence import (
    HEALTHY,
    NOTE,
    WARNING,
    Facts,
    Finding,
    Stream,
    improvement_error,
    mean_error,
    measured_noise,
    rule,
)

_HEALTHY_GAP = (2, 5)  # Epochs between raises, by the documents.
_FLAT_EPOCHS = 10
_FLAT = 0.005  # The documents' plateau, but over five epochs against five: nobody calls that a descent.
_RECENT = 200  # Losses that tell the noise of the time.


@rule("raises_every_epoch")
def raise_pace(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """A raise every epoch is too fast (the loss never stabilizes); one every 2 to 5 epochs is healthy."""
    epoch = facts.curriculum.steps_per_epoch
    for before, after in zip(stream.raises, stream.raises[1:]):
        gap = (after.step - before.step) / epoch
        if _HEALTHY_GAP[0] <= gap <= _HEALTHY_GAP[1]:
            text = f"{gap:g} epochs lie between the raises at steps {before.step} and {after.step}: a healthy pace"
            yield Finding("healthy_pace", HEALTHY, after.step, text, {"epochs_between": gap})
    if facts.curriculum.name != "plateau" or len(stream.raises) < 2:
        return  # A schedule raises when its author said so.
    chain: list[int] = []
    # The first raise counts as well if it came as early as it could.
    first = facts.first_chance
    chances = [*([] if first is None else [first]), *(raised.step for raised in stream.raises)]
    for previous, raised in zip(chances, chances[1:]):
        chain = [*chain, raised] if raised - previous <= epoch else []
        if len(chain) == 2:
            yield Finding(
                "raises_every_epoch",
                WARNING,
                chain[0],
                f"the cutoff was raised at steps {chain[0]} and {chain[1]}, each within an epoch of its first chance: "
                "the loss never stabilizes at a cutoff",
                {"threshold": facts.curriculum.threshold, "window": facts.curriculum.window},
                f"curriculum.threshold={facts.curriculum.threshold / 2:g} (a smaller threshold raises later)",
            )


@rule("no_raise")
def no_raise(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """Ten epochs at one cutoff below the top without progress: something keeps the plateau rule from raising."""
    rule, last = facts.curriculum, _last_raise(stream)
    if not _can_rise(stream, facts) or stream.steps[-1] - last < _FLAT_EPOCHS * rule.steps_per_epoch:
        return
    end = stream.steps[-1]
    middle, begin = (end - n * rule.steps_per_epoch for n in (_FLAT_EPOCHS / 2, _FLAT_EPOCHS))
    first, second = (stream.losses[stream.rows(*span)] for span in ((begin, middle), (middle, end)))
    if min(len(first), len(second)) < 2:
        return
    # About the means of the halves, and so with their trends: an upper bound, for logs of a line an epoch as well.
    noise = float(np.concatenate([first - first.mean(), second - second.mean()]).std())
    improvement = float(1 - second.mean() / first.mean())
    surely = improvement + 2 * mean_error(noise, len(first), len(second)) / float(first.mean())
    if surely < _FLAT:
        blocked = end <= rule.min_epoch * rule.steps_per_epoch
        change = f"curriculum.threshold={2 * rule.threshold:g} (a larger threshold raises sooner)"
        if blocked:
            change = f"curriculum.min_epoch: {rule.min_epoch} forbids any raise so far; lower it"
        elif rule.threshold <= 0:
            change = "curriculum.threshold: make it positive; at or below 0 only a rising loss is a plateau"
        yield Finding(
            "no_raise",
            WARNING,
            last,
            f"{_FLAT_EPOCHS} epochs and more at cutoff {stream.cutoffs[-1]:.0f} without a raise, and the last "
            f"{_FLAT_EPOCHS} improved the loss by {improvement:.2%} only",
            {"improvement": improvement, "epochs": (end - last) / rule.steps_per_epoch},
            change,
        )


@rule("threshold_in_noise")
def threshold_in_noise(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """A threshold within one standard error of what it is compared with: noise decides when to raise.

    A model that still improves by twice the threshold then passes for a plateau in one check of six or more. A matter
    of the config, so it is said once, whatever the cutoff, and not again after the same advice before the run.
    """
    rule = facts.curriculum
    if not _can_rise(stream, facts):
        return
    recent = stream.losses[stream.rows(_last_raise(stream), np.inf)][-_RECENT:]
    noise = measured_noise(recent)
    if noise is None or len(recent) < rule.window:
        return
    loss = float(recent[-rule.window :].mean())
    error = improvement_error(noise, rule.window, loss)
    if error < rule.threshold:
        return
    yield Finding(
        "threshold_in_noise",
        WARNING,
        0,
        f"the plateau rule's improvement has a standard error of {error:.2%} (losses scatter by {noise:.3f}), no less "
        f"than the threshold of {rule.threshold:.2%}: {what_noise_does(rule)}",
        {"error": error, "threshold": rule.threshold, "noise": noise},
        way_out_of_noise(rule, error),
    )


def what_noise_does(rule: Rule) -> str:
    """What becomes of a rule whose threshold lies within the noise of what it is compared with."""
    if rule.confidence is None:
        return "noise alone raises the cutoff"
    return f"at a confidence of {rule.confidence:g} hardly any plateau is found"


def way_out_of_noise(rule: Rule, error: float) -> str:
    """A change that makes the threshold twice the standard error of what it is compared with, now `error`."""
    if rule.threshold > 0:
        window = 2 * math.ceil((2 * error / rule.threshold) ** 2 * rule.window / 2)
        if window <= rule.steps_per_epoch:
            return f"curriculum.window={window} (its error is then half the threshold)"
    return f"curriculum.threshold={2 * error:.1g} (twice the error; it raises sooner, but not by noise)"


@rule()
def noise_note(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """The noise of the newest losses, for the reader."""
    del facts
    recent = stream.losses[-_RECENT:]
    noise = measured_noise(recent)
    if noise is not None:
        text = f"single losses scatter by {noise:.3f} nats ({noise / recent.mean():.1%}) about their trend"
        yield Finding("noise", NOTE, int(stream.steps[-1]), text, {"noise": noise})


def _can_rise(stream: Stream, facts: Facts) -> bool:
    rule = facts.curriculum
    return rule.name == "plateau" and len(stream.steps) > 0 and stream.cutoffs[-1] < rule.ladder[-1]


def _last_raise(stream: Stream) -> int:
    return stream.raises[-1].step if stream.raises else 0
