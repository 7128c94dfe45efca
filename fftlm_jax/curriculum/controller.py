"""The controller of the frequency curriculum: a small state machine on the host, saved with every checkpoint.

Order within a training step, fixed: `check` before the step, `record` after it. The loop hands over every loss before
it checks or saves, so no decision depends on timing.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from fftlm_jax.curriculum.ladder import curriculum_cutoff, next_rung
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
