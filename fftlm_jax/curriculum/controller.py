"""The controller of the frequency curriculum: a small state machine on the host, saved with every checkpoint.

Order within a training step, fixed: `check` before the step, `record` after it. The loop hands over every loss before
it checks or saves, so no decision depends on timing.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from fftlm_jax.config.cutoff import cutoff_in_bins, freq_bins
from fftlm_jax.config.schema import Config, rule_in_force
from fftlm_jax.curriculum.ladder import curriculum_cutoff, next_rung, resolve_ladder
from fftlm_jax.curriculum.plateau import adaptive_cutoff, improvement_bound, relative_improvement


@dataclasses.dataclass(frozen=True)
class Rule:
    """How cutoffs are raised. Cutoffs in bins; `check_every` in steps."""

    name: str  # plateau, schedule or none
    ladder: tuple[int, ...]
    freq_bins: int
    check_every: int
    steps_per_epoch: int
    min_epoch: int
    window: int
    threshold: float
    schedule: tuple[tuple[int, int | float | str], ...]
    spike_steps: int = 0  # Losses on either side of a raise whose means are compared; 0 compares nothing.
    confidence: float | None = None  # Of the plateau rule's test; None is the simple one.


class Raise(NamedTuple):
    """One raise: the step it happened before, the cutoffs in bins, and the improvement that the plateau rule saw.

    `bound` is the upper bound of the improvement, where the rule goes by it.
    """

    step: int
    old: int
    new: int
    improvement: float | None
    bound: float | None = None


class Spike(NamedTuple):
    """What a raise did to the loss: the step of the raise, and the mean losses (nats) before and after it."""

    raised_at: int
    before: float
    after: float

    @property
    def height(self) -> float:
        """Nats by which the loss rose; negative if it fell."""
        return self.after - self.before


class Controller:
    """Holds the cutoff in force and the losses seen at it; raises one rung at a time, never down."""

    def __init__(self, rule: Rule, cutoff: int) -> None:
        self.rule = rule
        self.cutoff = cutoff
        self.losses: list[float] = []
        self.raises: list[Raise] = []
        self.loss_before: float | None = None  # The last raise's, until its spike has been measured.

    def is_due(self, step: int) -> bool:
        """Whether the rule is checked before `step`: a schedule, which goes by epoch, at the border of each."""
        every = self.rule.steps_per_epoch if self.rule.name == "schedule" else self.rule.check_every
        return self.rule.name != "none" and step > 0 and step % every == 0

    def check(self, step: int) -> Raise | None:
        """Applies the rule before `step` where it is due; returns the raise, if any, after making it."""
        if not self.is_due(step):
            return None
        epoch = step // self.rule.steps_per_epoch
        improvement = bound = None
        if self.rule.name == "schedule":
            new = max(self.cutoff, curriculum_cutoff(epoch, self.rule.freq_bins, table=self.rule.schedule))
        else:
            improvement = relative_improvement(self.losses, self.rule.window)
            if self.rule.confidence is not None:
                bound = improvement_bound(self.losses, self.rule.window, self.rule.confidence)
            new, _ = adaptive_cutoff(
                epoch,
                self.cutoff,
                self.losses,
                self.rule.ladder[-1],
                ladder=self.rule.ladder[:-1],
                min_epoch_before_raise=self.rule.min_epoch,
                plateau_window=self.rule.window,
                plateau_threshold=self.rule.threshold,
                plateau_confidence=self.rule.confidence,
            )
        if new <= self.cutoff:
            return None
        event = Raise(step, self.cutoff, new, improvement, bound)
        before = self.losses[-self.rule.spike_steps :] if self.rule.spike_steps else []
        self.loss_before = sum(before) / len(before) if before else None
        self.cutoff, self.losses = new, []
        self.raises.append(event)
        return event

    def spike_is_due(self, step: int) -> bool:
        """Whether `measure_spike` has something to measure before `step`: the last raise's, once, when due."""
        return self.loss_before is not None and step >= self.raises[-1].step + self.rule.spike_steps

    def measure_spike(self, step: int) -> Spike | None:
        """The spike of the last raise, where it is due before `step`.

        A raise that follows within `spike_steps` puts an end to the measurement of the one before it.
        """
        if not self.spike_is_due(step) or not self.losses:
            return None
        after = self.losses[-self.rule.spike_steps :]
        spike = Spike(self.raises[-1].step, self.loss_before, sum(after) / len(after))
        self.loss_before = None
        return spike

    def record(self, loss: float) -> None:
        """Adds the loss of the step just done (nats). Non-finite losses never enter the window."""
        if math.isfinite(loss):
            self.losses = [*self.losses, loss][-max(self.rule.window, self.rule.spike_steps) :]

    def upcoming_cutoff(self) -> int | None:
        """The cutoff that the next raise would set, for compiling ahead; None at the top."""
        if self.rule.name == "none":
            return None
        if self.rule.name == "schedule":
            epochs = [epoch for epoch, _ in self.rule.schedule]
            cutoffs = (curriculum_cutoff(e, self.rule.freq_bins, table=self.rule.schedule) for e in epochs)
            return next((c for c in cutoffs if c > self.cutoff), None)
        return next_rung(self.rule.ladder, self.cutoff)

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state. Floats survive JSON exactly (shortest round-trip representation)."""
        return {
            "cutoff": self.cutoff,
            "losses": self.losses,
            "raises": [list(event) for event in self.raises],
            "loss_before": self.loss_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`.

        Raises:
            ValueError: if the state would lower the cutoff below the one in force.
        """
        if state["cutoff"] < self.cutoff:
            raise ValueError(f"the saved cutoff {state['cutoff']} is below {self.cutoff}: a cutoff never regresses")
        self.cutoff = int(state["cutoff"])
        self.losses = [float(loss) for loss in state["losses"]]
        self.raises = [Raise(*event) for event in state["raises"]]
        self.loss_before = state.get("loss_before")  # Older checkpoints have none.


def earliest_raises(rule: Rule, cutoff: int, steps: int) -> list[Raise]:
    """The raises of a run of `steps` steps from `cutoff` (bins) on, if every check finds a plateau.

    A schedule's raises are exactly these, whatever the losses.
    """
    if rule.name == "none":
        return []
    if rule.name == "schedule":
        controller = Controller(rule, cutoff)
        for epoch in sorted({1, *(first for first, _ in rule.schedule)}):  # The table says nothing new in between.
            if epoch * rule.steps_per_epoch < steps:
                controller.check(epoch * rule.steps_per_epoch)
        return controller.raises
    raises: list[Raise] = []
    bound = None if rule.confidence is None else 0.0  # Of a loss that stands still, as its improvement.
    ready = max(1, rule.window, rule.min_epoch * rule.steps_per_epoch)
    while (rung := next_rung(rule.ladder, cutoff)) is not None:
        step = -(-ready // rule.check_every) * rule.check_every
        if step >= steps:
            break
        raises.append(Raise(step, cutoff, rung, 0.0, bound))
        cutoff, ready = rung, step + rule.window
    return raises


def build_controller(config: Config) -> Controller:
    """The controller at the config's initial cutoff."""
    rule = build_rule(config)
    return Controller(rule, initial_cutoff(config, rule))


def build_rule(config: Config) -> Rule:
    """The rule that the config's section `curriculum` describes."""
    c, seq_len = config.curriculum, config.model.seq_len
    bins = freq_bins(seq_len)
    name = rule_in_force(c, config.objective)
    return Rule(
        name=name,
        ladder=resolve_ladder(("full",) if name == "none" else c.ladder, seq_len),
        freq_bins=bins,
        check_every=config.train.steps_per_epoch if c.check_every == "epoch" else c.check_every,
        steps_per_epoch=config.train.steps_per_epoch,
        min_epoch=c.min_epoch,
        window=c.window,
        threshold=c.threshold,
        schedule=c.schedule,
        spike_steps=config.lr.spike_steps if config.lr.factor == "adaptive" else 0,
        confidence=c.confidence if c.test == "confidence" else None,
    )


def initial_cutoff(config: Config, rule: Rule) -> int:
    """Bins at step 0: everything without a curriculum, else `curriculum.initial`, by default the first rung."""
    if rule.name == "none":
        return rule.freq_bins
    if config.curriculum.initial != "first":
        return cutoff_in_bins(config.curriculum.initial, config.model.seq_len)
    if rule.name == "schedule":
        return cutoff_in_bins(rule.schedule[0][1], config.model.seq_len)
    return rule.ladder[0]
