"""Measures a cycle: rates with honest intervals, variety of completions, and what was forgotten.

Samples of one prompt resemble each other, so prompts are the units that vary: P prompts, K samples of each.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fftlm_jax.config.schema import Config
from fftlm_jax.data.corpus import load_run_corpus
from fftlm_jax.evaluation.held_out_bpb import HeldOut, summary
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params
from fftlm_jax.raft.cycle_result import HeldOutResult, SampleResult, TrainResult
from fftlm_jax.raft.cycle_weights import Origin
from fftlm_jax.raft.fine_tuning import Fitted
from fftlm_jax.raft.selection import Candidate
from fftlm_jax.raft.tasks import END, Problem, Task, judge
from fftlm_jax.raft.tasks.task import ERROR


def clustered_rate(right_PK: np.ndarray) -> tuple[float, float]:
    """Share of right samples, and its standard error with prompts as clusters (0 for a single prompt)."""
    by_prompt = np.asarray(right_PK, float).mean(axis=1)
    P = len(by_prompt)
    return float(by_prompt.mean()), float(by_prompt.std(ddof=1) / math.sqrt(P)) if P > 1 else 0.0


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that k samples drawn from these hold a right one, without bias (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        ValueError: unless 1 <= k <= samples and 0 <= right <= samples.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} of {right} right among {samples} samples is not defined")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def pass_curve(right_PK: np.ndarray) -> dict[str, float]:
    """Mean pass@k over prompts for k = 1, 2, 4, ... up to K, and K itself; keys as JSON has them."""
    K = right_PK.shape[1]
    counts = np.asarray(right_PK, int).sum(axis=1)
    ks = sorted({*(2**i for i in range(K.bit_length()) if 2**i <= K), K})
    return {str(k): float(np.mean([pass_at_k(K, int(c), k) for c in counts])) for k in ks}


def unique_valid(completions: Sequence[Sequence[bytes]], right_PK: np.ndarray) -> float:
    """Different right completions over right ones, counted by prompt; 1 where there are none."""
    right = [[c for c, ok in zip(row, oks) if ok] for row, oks in zip(completions, right_PK, strict=True)]
    total = sum(map(len, right))
    return sum(len(set(row)) for row in right) / total if total else 1.0


def distinct_3grams(texts: Sequence[bytes]) -> float:
    """Different 3-grams of bytes over all 3-grams of some texts; 1 where none is that long."""
    grams = [text[i : i + 3] for text in texts for i in range(len(text) - 2)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_repeat(texts: Sequence[bytes]) -> float:
    """Mean share of a text that its longest run of one byte takes; empty texts count 0."""
    shares = [
        max((len(list(run)) for _, run in itertools.groupby(text)), default=0) / max(len(text), 1) for text in texts
    ]
    return float(np.mean(shares)) if shares else 0.0


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
    """Numbers of a training, of the steps whose updates were made."""
    made = np.isfinite(fitted.loss)
    return TrainResult(
        steps=int(made.sum()),
        lr=lr,
        lr_peak=float(rates.max(initial=0.0)),
        lr_area=float(rates.sum()),
        losses=tuple(round(float(loss), 6) for loss in fitted.loss[made]),
        grad_norm={str(q): float(np.quantile(fitted.grad_norm[made], q)) for q in (0.1, 0.5, 0.9)},
        clip=clip,
        clip_fraction=float(np.mean(fitted.grad_norm[made] > clip)),
        update_ratio=float(np.median(fitted.update_ratio[made])),
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


class GeneralText:
    """The held-out part of the corpus that the config's `data` names, in the windows that the model was trained on.

    Raises:
        DataError: if there is no such corpus.
    """

    def __init__(self, config: Config, origin: Origin) -> None:
        self._held_out: HeldOut | None = None
        self._cutoff = origin.cutoff
        if origin.text_window is not None:
            model = dataclasses.replace(config.model, seq_len=origin.text_window)
            self._config = dataclasses.replace(config, model=model)
            self._held_out = HeldOut(self._config, build(model)[0], load_run_corpus(self._config).held_out)

    def bpb(self, params: Params) -> float | None:
        """Next-byte bits per byte, or None where the first weights had not learned any text."""
        if self._held_out is None:
            return None
        return summary(self._held_out.tally(params, self._cutoff), self._config.objective)["bpb"]
