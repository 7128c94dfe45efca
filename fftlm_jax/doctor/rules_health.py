"""Rules about gradient norms, held-out losses and samples."""

import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from fftlm_jax.doctor.evidence import WARNING, Facts, Finding, Stream, mean_error, measured_noise, rule

_START = 100  # Steps in which gradients are large and losses fall whatever the settings.
_FEWEST_STEPS = 50  # Of a span that is judged: a share of them is known to 7 %.
_OFTEN = 0.5  # At most 0.16 behind the start in the runs measured with a fitting learning rate.
_TINY = 0.05  # From the documents. Medians of the runs measured: 0.16 to 0.7.
_RISES = 3  # Evaluations in a row that must each be worse than the one before.
_NOTABLE = 0.01  # Of the held-out loss.
_SURE = 3.0  # Standard errors.
# Distinct pieces of 4 bytes among all, repeats of one byte counted once: below 0.3 in fewer than 1 in 1000 passages of
# 128 to 512 bytes of Python source (median 0.74 to 0.91), never in TinyShakespeare. Two samples in a row must be.
_PIECE, _DISTINCT = 4, 0.3
_SHORTEST, _LONGEST = 64, 512  # Characters of a sample that are looked at.
_GREEDY = 0.5  # A temperature below it repeats itself without anything being wrong with the training.


@rule("nonfinite_loss")
def nonfinite_loss(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """A loss that is NaN or infinite."""
    count = len(stream.not_finite)
    if count:
        first = int(stream.not_finite[0])
        later = int(np.sum(stream.steps > first))
        rest = "no later one is finite" if not later else f"{later} later ones are finite"
        yield Finding(
            "nonfinite_loss",
            WARNING,
            first,
            f"the loss is not finite at step {first}; {count} recorded losses are not, and {rest}",
            {"not_finite": count, "finite_later": later},
            "lr.base: halve it (or set train.skip_nonfinite to pass over single steps)",
        )


@rule("clipped_gradients")
def clipped_gradients(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """Most steps of an epoch at the clip, which then sets their size.

    The documents take it for a learning rate that is too high. In the runs measured it came with one far too low: a
    model that has not learned keeps the large gradients of its first steps.
    """
    spans = _spans(stream, facts)
    for first, last in _runs_of([np.mean(norms >= facts.clip) > _OFTEN for _, norms in spans]):
        norms = np.concatenate([norms for _, norms in spans[first : last + 1]])
        share, median = float(np.mean(norms >= facts.clip)), float(np.median(norms))
        yield Finding(
            "clipped_gradients",
            WARNING,
            spans[first][0],
            f"from step {spans[first][0]} on {share:.0%} of the gradients were cut to the clip of {facts.clip:g} "
            f"(median norm {median:.2f})",
            {"share": share, "median": median, "clip": facts.clip},
            f"optim.clip={2 * median:.2g} (so that it cuts outliers only)",
        )


@rule("tiny_gradients")
def tiny_gradients(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """Gradient norms below 0.05: hardly anything is learned any more."""
    spans = _spans(stream, facts)
    for first, last in _runs_of([np.median(norms) < _TINY for _, norms in spans]):
        median = float(np.median(np.concatenate([norms for _, norms in spans[first : last + 1]])))
        yield Finding(
            "tiny_gradients",
            WARNING,
            spans[first][0],
            f"from step {spans[first][0]} on the gradient norm lies near {median:.3f}, below {_TINY}",
            {"median": median},
            "lr.base: raise it threefold",
        )


def _spans(stream: Stream, facts: Facts) -> list[tuple[int, np.ndarray]]:
    """(updates done before, gradient norms) of spans of an epoch (50 steps at least), one after the other."""
    length = max(facts.curriculum.steps_per_epoch, _FEWEST_STEPS)
    end = int(stream.steps[-1]) if len(stream.steps) else 0
    # Only those with steps in them: a log may jump to a step that is far away.
    numbers = np.unique((stream.steps.astype(np.int64) - _START - 1) // length)
    begins = [begin for begin in (_START + length * numbers).tolist() if _START <= begin <= end - length]
    spans = [(begin, stream.grad_norms[stream.rows(begin, begin + length)]) for begin in begins]
    return [(begin, norms) for begin, norms in spans if np.isfinite(norms).sum() >= _FEWEST_STEPS]


def _runs_of(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """(first, last) index of every unbroken run of true entries."""
    begin = None
    for i, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = i
        elif not flag and begin is not None:
            yield begin, i - 1
            begin = None


@rule("overfitting")
def overfitting(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """Held-out loss that rises three times in a row while the training loss falls.

    Evaluations score the same bytes every time, so what is left of noise is that of the weights. It is largest while
    the learning rate rises: what spans a raise or the start of a tooth is not judged.
    """
    points = stream.evaluations
    rising = [_rises(stream, *points[i : i + 2]) for i in range(len(points) - 1)]
    for first, last in _runs_of(rising):
        (begin, best), (end, worst) = points[first], points[last + 1]
        third = max((end - begin) // 3, 1)
        early, late = (stream.losses[stream.rows(*span)] for span in ((begin, begin + third), (end - third, end)))
        noise = measured_noise(stream.losses[stream.rows(begin, end)])
        if last - first + 1 < _RISES or worst < (1 + _NOTABLE) * best or noise is None or not len(early):
            continue
        fall = float(early.mean() - late.mean())
        if fall > _SURE * mean_error(noise, len(early), len(late)):
            yield Finding(
                "overfitting",
                WARNING,
                begin,
                f"since step {begin} the held-out loss rose from {best:.3f} to {worst:.3f} while the training loss "
                f"fell by {fall:.3f}: the model learns its corpus by heart",
                {"held_out_best": best, "held_out_now": worst, "training_fall": fall},
                "optim.weight_decay: raise it tenfold (or stop here: the best checkpoint is kept)",
            )


def _rises(stream: Stream, before: tuple[int, float], after: tuple[int, float]) -> bool:
    lrs = stream.lrs[stream.rows(before[0] - 1, after[0])]
    return after[1] > before[1] and not np.any(np.diff(lrs) > 0)


@rule("repetitive_samples")
def repetitive_samples(stream: Stream, facts: Facts) -> Iterator[Finding]:
    """Two samples in a row that say the same thing over and over."""
    shares = [distinct_share(text) for _, text in stream.samples]
    for first, last in _runs_of([share is not None and share < _DISTINCT for share in shares]):
        if first == last:
            continue
        step, worst = stream.samples[first][0], min(shares[first : last + 1])
        yield Finding(
            "repetitive_samples",
            WARNING,
            step,
            f"from step {step} on the samples repeat themselves: {worst:.0%} of their pieces of {_PIECE} bytes are "
            "distinct",
            {"distinct": worst, "samples": last - first + 1},
            "sample.temperature=0.8" if facts.temperature < _GREEDY else "lr.base: halve it",
        )


@functools.lru_cache(maxsize=4096)  # Each evaluation looks at all samples so far.
def distinct_share(text: str) -> float | None:
    """Share of distinct pieces of 4 characters among all of a text, None if it is too short to tell.

    A run of one character counts once: indentation is no repetition. A text of nothing but such runs is.
    """
    text = text[:_LONGEST]
    if len(text) < _SHORTEST:
        return None
    short = re.sub(r"(.)\1+", r"\1", text, flags=re.DOTALL)
    pieces = {short[i : i + _PIECE] for i in range(len(short) - _PIECE + 1)}
    return len(pieces) / max(len(short) - _PIECE + 1, len(text) // 4)
