"""Rates of right completions with honest errors, pass@k, and how varied completions are. Plain NumPy.

Samples of one prompt resemble each other, so prompts are the units that vary: P prompts, K samples of each.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np


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
