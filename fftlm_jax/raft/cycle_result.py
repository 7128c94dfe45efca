"""What a cycle of reward-ranked fine-tuning showed: the numbers that the journal keeps, the advisor reads and the
report draws.

Rates are fractions of verified completions, and so the mean reward, since rewards are 0 and 1. `held_out.rate` is what
cycles are compared by, on prompts that no training ever sees; those of `samples` are of the prompts that were trained
on, before that training.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class HeldOutResult:
    """Scores of the weights after a cycle on the held-out prompts."""

    rate: float  # What cycles are compared by: `greedy_rate` or `sampled_rate`, as raft.score says.
    se: float  # Its standard error, prompts as clusters.
    greedy_rate: float  # One completion of every prompt, at temperature 0.
    sampled_rate: float  # Of raft.held_out_samples completions of every prompt.
    pass_at: dict[str, float]  # "k" -> chance that at least one of k samples is right (unbiased; Chen et al. 2021).
    gold_loss: float  # Nats per byte of the labelled answers.
    unique_valid: float  # Distinct right completions over right completions, by prompt.
    general_bpb: float | None  # Bits per byte of general text, where the run began from a trained language model.


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """What was sampled from the prompts of a cycle, by the weights before it."""

    prompts: int
    samples: int
    rate: float  # Verified completions over all.
    se: float
    pass_at: dict[str, float]
    never: int  # Prompts with no right completion,
    always: int  # and with nothing but right ones.
    kept: int  # Completions that the cycle is trained on.
    right_among_kept: float  # Less than 1 under the random filter alone.
    coverage: float  # Prompts with a kept completion over prompts.
    unique_valid: float  # Distinct right completions over right completions, by prompt; 1 where there are none.
    distinct_3grams: float  # Distinct byte 3-grams of all completions over their number.
    longest_repeat: float  # Mean share of a completion that its longest run of one byte takes.
    truncated: float  # Share of completions that never ended.
    mean_length: float  # Bytes of a completion.
    level: int = 1  # Of the hardest prompts, where the task has levels,
    level_rate: float = 0.0  # and the share of right completions among theirs.
    errors: int = 0  # Completions that the verifier could not judge; they are not right, but nor are they wrong.


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The training of a cycle."""

    steps: int
    lr: float  # Of the cycle.
    lr_peak: float  # Highest that a step reached.
    lr_area: float  # Sum over steps.
    losses: tuple[float, ...]  # Of every step, nats per byte of the answers, before its update.
    grad_norm: dict[str, float]  # Quantiles "0.1", "0.5", "0.9" over steps, before clipping.
    clip: float  # The norm that gradients are clipped to.
    clip_fraction: float  # Steps whose gradient was longer.
    update_ratio: float  # Median over steps of |update| / |weights trained|.


@dataclasses.dataclass(frozen=True)
class CycleResult:
    """Everything about one cycle. Cycle 0 is the start, after supervised fine-tuning: nothing was sampled for it."""

    cycle: int
    parent: int  # The cycle whose weights this one started from; of cycle 0, itself.
    held_out: HeldOutResult
    samples: SampleResult | None = None
    train: TrainResult | None = None
    multi_answer: bool = False  # Whether the task's prompts have several right answers.

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CycleResult":
        """The inverse of `to_dict`, also after a pass through JSON."""
        samples, train = values["samples"], values["train"]
        return cls(
            **{
                **values,
                "held_out": HeldOutResult(**values["held_out"]),
                "samples": SampleResult(**samples) if samples else None,
                "train": TrainResult(**{**train, "losses": tuple(train["losses"])}) if train else None,
            }
        )
