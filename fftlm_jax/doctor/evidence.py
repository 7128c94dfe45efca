"""What rules work with: findings, facts of the config, the records as arrays, and how noisy the loss is.

The model throughout: a recorded loss is a smooth curve plus white Gaussian noise of standard deviation `sd`, which
comes from the texts of the batch. Measured (`python -m experiments.doctor_false_alarms`, experiments/LOG.md): lag-one
correlations lie within 0.14 of zero and kurtosis between 2.4 and 5; the noise of a learned model depends neither on the
loss nor on the length of a window (128 to 512 bytes), but only on how many windows a step has.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Rule, answer_to_raise, earliest_raises
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.optim import Stage, stages_in_steps
from fftlm_jax.recording.history import History, is_number

WARNING, HEALTHY, NOTE = "warning", "healthy", "note"
# `adaptive` chooses after the raise, between 0.5 and 0.9: what it leaves at the least.
_SMALLEST_ADAPTIVE_FACTOR = 0.5


def rule(*warnings: str) -> Callable[[Callable], Callable]:
    """Marks a function of a `rules_*` module as a rule of the doctor, which then applies it.

    Args:
        warnings: names of the warnings that it may give.
    """

    def mark(function: Callable) -> Callable:
        function.warnings = warnings
        return function

    return mark


class Finding(NamedTuple):
    """One sentence about a run. `rule` and `step` together tell one occurrence from another."""

    rule: str
    severity: str  # WARNING, HEALTHY or NOTE.
    step: int  # Updates done where it begins, such as those before a raise; never where it was noticed.
    text: str
    evidence: dict[str, float]
    change: str = ""  # The one thing to change, by its config key; empty where nothing need be.


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of a run's config that rules need besides the records. Cutoffs in bins; lengths in steps."""

    curriculum: Rule
    initial_cutoff: int
    stages: tuple[Stage, ...]
    base_lr: float
    restart: str
    factor: float | str
    clip: float  # Global gradient norm.
    temperature: float  # Of the samples.
    is_fresh: bool = True  # Whether the weights were random at step 0. The loss of others need not fall much.
    # Of a log of few lines: the noise to take (nats, of a line) where it cannot be measured. None: rules wait for more.
    assumed_noise: float | None = None

    @property
    def first_chance(self) -> int | None:
        """Updates done before the first raise that the rule could make at all, if it could make any."""
        end = self.stages[-1].end if self.stages else 0
        raises = earliest_raises(self.curriculum, self.initial_cutoff, end)
        return raises[0].step if raises else None

    def peak(self, step: int) -> float:
        """Top of the tooth of the stage that update number `step` lies in, before any reduction."""
        reached = [stage for stage in self.stages if stage.start <= step] or self.stages[:1]
        return self.base_lr * reached[-1].peak

    def reduction(self, old: int, new: int) -> float:
        """What a raise from `old` to `new` multiplies into the learning rate for good, at the least."""
        if self.factor == "adaptive":
            return _SMALLEST_ADAPTIVE_FACTOR
        return answer_to_raise(self.restart, self.factor, old, new).reduce_by


def facts_of(config: Config) -> Facts:
    """The facts of a run's config."""
    lr, train, controller = config.lr, config.train, build_controller(config)
    if lr.schedule == "sawtooth":
        stages = stages_in_steps(lr.stages, train.steps_per_epoch, train.epochs)
    else:
        stages = (Stage(0, config.total_steps, max(lr.multipliers), 0.0),)  # Its last stage has the highest peak.
    return Facts(
        curriculum=controller.rule,
        initial_cutoff=controller.cutoff,
        stages=stages,
        base_lr=lr.base,
        restart=lr.restart,
        factor=lr.factor,
        clip=config.optim.clip,
        temperature=config.sample.temperature,
        is_fresh=not config.init.checkpoint,
    )


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


class Raised(NamedTuple):
    """A raise: the updates done before it, and the cutoffs in bins."""

    step: int
    old: int
    new: int


class Stream(NamedTuple):
    """One entry of each array per training step that was recorded with a finite loss, in order; NaN where unknown."""

    steps: np.ndarray  # Updates done, with this one.
    losses: np.ndarray  # Nats.
    lrs: np.ndarray
    cutoffs: np.ndarray  # Bins.
    grad_norms: np.ndarray  # Before clipping.
    raises: tuple[Raised, ...]
    evaluations: tuple[tuple[int, float], ...]  # (updates done, held-out loss in nats).
    samples: tuple[tuple[int, str], ...]  # (updates done, what the model wrote).
    not_finite: np.ndarray  # Updates done, of the steps whose loss was not finite; they are in no other array.

    def rows(self, after: int, until: float) -> slice:
        """The rows of updates `after` + 1 to `until`."""
        first, last = np.searchsorted(self.steps, (after, until), side="right")
        return slice(int(first), int(last))


class Stretch(NamedTuple):
    """The losses from a raise (or the beginning, where there was none yet) to the next raise or an epoch later."""

    begin: int  # Updates done.
    raised: Raised | None
    before: np.ndarray  # The losses at the cutoff before, at most 200.
    losses: np.ndarray
    ages: np.ndarray  # Updates done since `begin`, with this one.
    is_whole: bool  # Whether an epoch of it is there.

    @property
    def place(self) -> str:
        """The place of the stretch in its run, in words."""
        if self.raised is None:
            return f"from step {self.begin} on"
        return f"after the raise {self.raised.old} -> {self.raised.new} at step {self.begin}"


_LOSSES_BEFORE = 200  # Enough for a standard deviation within 7 %, few enough to lie near the raise.


def read_stream(history: History, samples: Iterable[tuple[int, str]] = ()) -> Stream:
    """Takes the training steps with a loss, the raises and the evaluations out of what a run has recorded."""
    train = history.train
    is_there = ~np.isnan(train["loss"])
    columns = [train[name][is_there] for name in ("step", "loss", "lr", "cutoff", "grad_norm")]
    raises = tuple(Raised(r["step"], r["from"], r["to"]) for r in history.raises)
    evaluations = tuple((r["step"], r["loss"]) for r in history.evaluations if is_number(r.get("loss")))
    return Stream(*columns, raises, evaluations, tuple(samples), train["step"][~is_there])


def stretches(stream: Stream, steps_per_epoch: int) -> list[Stretch]:
    """What follows each raise, in order; first, what lies before the first one."""
    if not len(stream.steps):
        return []
    # A log may begin in the midst of a run. Its first line stands for as many steps as lie between two lines.
    spacing = float(np.median(np.diff(stream.steps))) if len(stream.steps) > 1 else 1.0
    origin = int(max(stream.steps[0] - spacing, 0))
    begins: list[tuple[int, Raised | None]] = [(raised.step, raised) for raised in stream.raises]
    if not begins or begins[0][0] > origin:
        begins = [(origin, None), *begins]
    found = []
    for i, (begin, raised) in enumerate(begins):
        previous = begins[i - 1][0] if i else 0
        following = begins[i + 1][0] if i + 1 < len(begins) else np.inf
        rows = stream.rows(begin, min(following, begin + steps_per_epoch))
        before = stream.losses[stream.rows(previous, begin)][-_LOSSES_BEFORE:] if raised else np.array([])
        is_whole = min(following, stream.steps[-1]) >= begin + steps_per_epoch
        found.append(Stretch(begin, raised, before, stream.losses[rows], stream.steps[rows] - begin, is_whole))
    return found
