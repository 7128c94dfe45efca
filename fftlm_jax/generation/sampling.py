"""Choosing the next byte: pure functions of one position's logits, float32 [V], and of the bytes before it.

What every mode of decoding samples from is `log_probabilities`: bytes that are not allowed are excluded first (so no
later rule is left with nothing), then come the repetition penalty, the temperature, top-k, top-p and min-p, in this
order. Greedy decoding is the same with all probability on the likeliest byte.
Shapes: V = 256 byte values, R remembered bytes (`SamplingConfig.memory`), newest last; NOTHING stands for no byte.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.config import SampleConfig
from fftlm_jax.model.language_model import VOCABULARY

NOTHING = VOCABULARY


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How bytes are chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest byte.
        top_k: keep only the k likeliest bytes; 0 keeps all.
        top_p: keep the smallest set of likeliest bytes whose probability reaches p; 1 keeps all.
        min_p: keep the bytes at least this many times as probable as the likeliest; 0 keeps all.
        repetition_penalty: logits of bytes among the last `repetition_window` are divided by it where positive and
            multiplied where negative (Keskar et al. 2019, CTRL); 1 leaves them alone.
        repetition_window: bytes, prompt included.
        longest_run: no byte more often than this in a row, the end of the prompt included; 0 for no limit.
        ascii_only: printable ASCII, tab and newline, nothing else.
        banned: bytes never written.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    longest_run: int = 0
    ascii_only: bool = False
    banned: bytes = b""

    @property
    def memory(self) -> int:
        """R: how many of the last bytes the rules look at."""
        return max(self.repetition_window if self.repetition_penalty != 1.0 else 0, self.longest_run)

    @property
    def allowed(self) -> np.ndarray:
        """bool [V]: bytes that may be written at all."""
        allowed = np.ones(VOCABULARY, bool)
        if self.ascii_only:
            allowed[:] = False
            allowed[[*range(0x20, 0x7F), ord("\t"), ord("\n")]] = True
        allowed[list(self.banned)] = False
        return allowed


def sampling_of(sample: SampleConfig) -> SamplingConfig:
    """How a run's samples are drawn."""
    return SamplingConfig(
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        min_p=sample.min_p,
        repetition_penalty=sample.repetition_penalty,
        repetition_window=sample.repetition_window,
        longest_run=sample.longest_run,
        ascii_only=sample.ascii_only,
    )


def remember(text: bytes, size: int) -> np.ndarray:
    """The last `size` bytes of a text, int32, with NOTHING before its beginning."""
    last = np.frombuffer(text[max(0, len(text) - size) :], np.uint8).astype(np.int32)
    return np.concatenate([np.full(size - len(last), NOTHING, np.int32), last])


def push(recent_R: jax.Array, byte: jax.Array) -> jax.Array:
    """Remembers one more byte and forgets the oldest."""
    return jnp.append(recent_R, byte)[1:] if len(recent_R) else recent_R


def log_probabilities(logits_V: jax.Array, recent_R: jax.Array, config: SamplingConfig) -> jax.Array:
    """Log-probabilities of the next byte under all rules, [V]; -inf for those that are excluded."""
    logits_V = exclude(logits_V, config.allowed)
    logits_V = limit_runs(logits_V, recent_R, config.longest_run)
    seen_R = recent_R[len(recent_R) - min(config.repetition_window, len(recent_R)) :]
    logits_V = penalise_repetition(logits_V, seen_R, config.repetition_penalty)
    if config.temperature == 0.0:
        return jnp.where(jnp.arange(len(logits_V)) == jnp.argmax(logits_V), 0.0, -jnp.inf)
    logits_V = keep_top_p(keep_top_k(logits_V / config.temperature, config.top_k), config.top_p)
    return jax.nn.log_softmax(keep_min_p(logits_V, config.min_p))


def exclude(logits_V: jax.Array, allowed_V: np.ndarray) -> jax.Array:
    """Sets the logits of bytes that are not allowed to -inf."""
    return logits_V if allowed_V.all() else jnp.where(allowed_V, logits_V, -jnp.inf)


def limit_runs(logits_V: jax.Array, recent_R: jax.Array, longest: int) -> jax.Array:
    """Excludes a byte that has just been written `longest` times in a row."""
    if longest == 0:
        return logits_V
    last = recent_R[-1]
    is_full = jnp.all(recent_R[-longest:] == last)
    return jnp.where(is_full & (jnp.arange(len(logits_V)) == last), -jnp.inf, logits_V)


def penalise_repetition(logits_V: jax.Array, seen_R: jax.Array, penalty: float) -> jax.Array:
    """Makes bytes that were seen less likely."""
    if penalty == 1.0:
        return logits_V
    is_seen = jnp.zeros(len(logits_V), bool).at[seen_R].set(True, mode="drop")
    return jnp.where(is_seen, jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty), logits_V)


def keep_top_k(logits_V: jax.Array, k: int) -> jax.Array:
    """Sets all but the k largest logits to -inf; ties with the k-th stay."""
    if k <= 0 or k >= logits_V.shape[-1]:
        return logits_V
    return jnp.where(logits_V < jax.lax.top_k(logits_V, k)[0][-1], -jnp.inf, logits_V)


def keep_top_p(logits_V: jax.Array, p: float) -> jax.Array:
    """Sets to -inf all logits outside the smallest likeliest set of probability at least p (never empty)."""
    if p >= 1.0:
        return logits_V
    sorted_V = jnp.sort(logits_V)[::-1]
    probability_V = jax.nn.softmax(sorted_V)
    before_V = jnp.cumsum(probability_V) - probability_V
    smallest_kept = jnp.min(jnp.where(before_V < p, sorted_V, jnp.inf))
    return jnp.where(logits_V < smallest_kept, -jnp.inf, logits_V)


def keep_min_p(logits_V: jax.Array, p: float) -> jax.Array:
    """Sets to -inf all logits of bytes less than p times as probable as the likeliest (Nguyen et al. 2024)."""
    if p <= 0.0:
        return logits_V
    return jnp.where(logits_V < jnp.max(logits_V) + np.log(p), -jnp.inf, logits_V)
