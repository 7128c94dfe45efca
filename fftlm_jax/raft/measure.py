"""From completions and verdicts to the numbers of a cycle. Pure, but for the model that `score_held_out` is given."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fftlm_jax.raft.cycle_result import HeldOutResult, SampleResult, TrainResult
from fftlm_jax.raft.fitting import Fitted
from fftlm_jax.raft.selection import Candidate
from fftlm_jax.raft.statistics import clustered_rate, distinct_3grams, longest_repeat, pass_curve, unique_valid
from fftlm_jax.raft.tasks import END, Problem, Task, judge
from fftlm_jax.raft.tasks.task import ERROR

Complete = Callable[[Sequence[bytes], int, bool], list[bytes]]  # (prompts, samples, greedy) -> completions in order.


class Judged(NamedTuple):
    """Completions of one prompt after the other, and what the verifier says of each."""

    completions: list[bytes]
    ok: list[bool]
    reasons: list[str]


def judge_all(task: Task, prompts: Sequence[bytes], completions: Sequence[bytes]) -> Judged:
    """Verdicts of the completions, of which every prompt has equally many."""
    samples, left = divmod(len(completions), len(prompts))
    if left:
        raise ValueError(f"{len(completions)} completions are not equally many of each of {len(prompts)} prompts")
    verdicts = [judge(task, prompts[i // samples], completion) for i, completion in enumerate(completions)]
    return Judged(list(completions), [v.ok for v in verdicts], [v.reason for v in verdicts])


def sample_result(
    task: Task, prompts: Sequence[bytes], judged: Judged, kept: Sequence[Candidate], level: int
) -> SampleResult:
    """Numbers of a cycle's samples and of what was kept of them."""
    right_PK = np.reshape(judged.ok, (len(prompts), -1))
    completions = np.reshape(np.array(judged.completions, dtype=object), right_PK.shape)
    rate, se = clustered_rate(right_PK)
    counts, samples = right_PK.sum(axis=1), right_PK.shape[1]
    hardest = np.array([task.level(prompt) == level for prompt in prompts])
    return SampleResult(
        prompts=len(prompts),
        samples=right_PK.size,
        rate=rate,
        se=se,
        pass_at=pass_curve(right_PK),
        never=int((counts == 0).sum()),
        always=int((counts == samples).sum()),
        kept=len(kept),
        right_among_kept=float(np.mean([c.ok for c in kept])) if kept else 0.0,
        coverage=len({c.prompt for c in kept}) / len(prompts),
        unique_valid=unique_valid(completions.tolist(), right_PK),
        distinct_3grams=distinct_3grams(judged.completions),
        longest_repeat=longest_repeat(judged.completions),
        truncated=float(np.mean([END not in completion for completion in judged.completions])),
        mean_length=float(np.mean([len(completion) for completion in judged.completions])),
        level=level,
        level_rate=float(right_PK[hardest].mean()) if hardest.any() else 0.0,
        errors=judged.reasons.count(ERROR.reason),
    )


def train_result(fitted: Fitted, rates: np.ndarray, lr: float, clip: float) -> TrainResult:
    """Numbers of a training."""
    return TrainResult(
        steps=len(rates),
        lr=lr,
        lr_peak=float(rates.max(initial=0.0)),
        lr_area=float(rates.sum()),
        losses=tuple(round(float(loss), 6) for loss in fitted.loss),
        grad_norm={str(q): float(np.quantile(fitted.grad_norm, q)) for q in (0.1, 0.5, 0.9)},
        clip=clip,
        clip_fraction=float(np.mean(fitted.grad_norm > clip)),
        update_ratio=float(np.median(fitted.update_ratio)),
    )


def score_held_out(
    task: Task,
    problems: Sequence[Problem],
    complete: Complete,
    *,
    samples: int,
    by: str,
    gold_loss: float,
    general_bpb: float | None,
) -> HeldOutResult:
    """Scores of some weights on the held-out problems.

    Args:
        task, problems: what is asked.
        complete: writes completions with these weights.
        samples: completions per prompt besides the greedy one.
        by: which of the two rates cycles are compared by, `greedy` or `sampled`.
        gold_loss, general_bpb: passed through.
    """
    prompts = [problem.prompt for problem in problems]
    greedy = np.reshape(judge_all(task, prompts, complete(prompts, 1, True)).ok, (-1, 1))
    judged = judge_all(task, prompts, complete(prompts, samples, False))
    sampled = np.reshape(judged.ok, (len(prompts), samples))
    completions = np.reshape(np.array(judged.completions, dtype=object), sampled.shape)
    rate, se = clustered_rate(greedy if by == "greedy" else sampled)
    return HeldOutResult(
        rate=rate,
        se=se,
        greedy_rate=float(greedy.mean()),
        sampled_rate=float(sampled.mean()),
        pass_at=pass_curve(sampled),
        gold_loss=gold_loss,
        unique_valid=unique_valid(completions.tolist(), sampled),
        general_bpb=general_bpb,
    )
