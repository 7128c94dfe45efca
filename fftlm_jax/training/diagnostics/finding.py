"""What a rule says about a run, and the few facts of its config that rules need besides the records."""

import dataclasses
from typing import NamedTuple

from fftlm_jax.config import Config
from fftlm_jax.curriculum import Rule, answer_to_raise, earliest_raises
from fftlm_jax.optim import Stage, stages_in_steps
from fftlm_jax.training.setup import build_controller

WARNING, HEALTHY, NOTE = "warning", "healthy", "note"
# `adaptive` chooses after the raise, between 0.5 and 0.9: what it leaves at the least.
_SMALLEST_ADAPTIVE_FACTOR = 0.5


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
    """Of a run's config. Cutoffs in bins; lengths in steps."""

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
