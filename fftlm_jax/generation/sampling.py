"""Chooses the next bytes: sampling rules, random keys of rows, and drafts that are accepted or corrected.

Choosing the next byte: pure functions of one position's logits, float32 [V], and of the bytes before it.

What every mode of decoding samples from is `log_probabilities`: bytes that are not allowed are excluded first (so no
later rule is left with nothing), then come the repetition penalty, the temperature, top-k, top-p and min-p, in this
order. Greedy decoding is the same with all probability on the likeliest byte.
Shapes: V = 256 byte values, R remembered bytes (`SamplingConfig.memory`), newest last; NOTHING stands for no byte.

A draft begins with a byte of the next-byte head itself; the others come from the later slices of the chunk head, each
independent of the others but for the sampling rules. After the model has read the draft, byte i stands with
probability min(1, p(x_i) / q(x_i)), p being the next-byte head's distribution given all bytes before, q the one that
the byte was drawn from; at the first that falls, the next byte is drawn from the residual max(p - q, 0), normalised
(Leviathan et al. 2023; Chen et al. 2023). What is written then follows p exactly, under any sampling rules, as long as
p and q are the distributions after the rules. At temperature 0 both are certain, and a byte stands where they agree.

Every random number is a function of a row's key, the byte's position and its purpose, so neither the batch nor the
mode's blocks change what is drawn. A draft that falls is drawn again later with the same numbers: nothing that was
written depended on them.
Shapes: C bytes of a draft, V byte values, R remembered bytes. All functions are of one row.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fftlm_jax.config.schema import SampleConfig
from fftlm_jax.model.layers import VOCABULARY
from fftlm_jax.runtime.jax_settings import random_key

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


_COLDEST = 1e-6  # Temperatures below are greedy: float32 logits do not tell finer, and dividing by them overflows.
_LARGEST = 1e30  # Size of a penalised logit: divided by the coldest temperature it is still finite.
_SMALLEST = 1e-30  # Probability or penalty: smaller ones may be 0 in float32.


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
    if config.temperature < _COLDEST:
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
    penalty = min(max(penalty, _SMALLEST), _LARGEST)
    is_seen = jnp.zeros(len(logits_V), bool).at[seen_R].set(True, mode="drop")
    changed_V = jnp.clip(jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty), -_LARGEST, _LARGEST)
    return jnp.where(is_seen & ~jnp.isinf(logits_V), changed_V, logits_V)


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
    smallest_kept = jnp.min(jnp.where(before_V < max(p, _SMALLEST), sorted_V, jnp.inf))
    return jnp.where(logits_V < smallest_kept, -jnp.inf, logits_V)


def keep_min_p(logits_V: jax.Array, p: float) -> jax.Array:
    """Sets to -inf all logits of bytes less than p times as probable as the likeliest (Nguyen et al. 2024)."""
    if p <= 0.0:
        return logits_V
    return jnp.where(logits_V < jnp.max(logits_V) + np.log(p), -jnp.inf, logits_V)


class DecodedBytes(NamedTuple):
    """What a decoder hands out at a time."""

    written: list[bytes]  # By each row.
    drafted: int  # Bytes drafted beyond the first of each round, all rows together; 0 where nothing is verified,
    accepted: int  # and how many of them stood.


def row_keys(seed: int, rows: Sequence[int]) -> jax.Array:
    """A key for each row of a seed."""
    return jax.vmap(lambda row: jax.random.fold_in(random_key(seed), row))(jnp.asarray(np.asarray(rows, np.uint32)))


_FIRST, _LATER, _ACCEPT = range(3)  # What a random number is for.


def draft(
    key: jax.Array,
    position: jax.Array,
    next_V: jax.Array,
    later_XV: jax.Array,
    recent_R: jax.Array,
    config: SamplingConfig,
) -> tuple[jax.Array, jax.Array]:
    """Draws the byte at `position` and the C - 1 after it, one after the other, so that the rules hold among them too.

    Args:
        key: the row's.
        position: number of bytes written before.
        next_V: log-probabilities of the first, all rules applied.
        later_XV: logits of the others, X = C - 1.
        recent_R: remembered bytes.
        config: sampling rules.

    Returns:
        bytes [C] and the log-probabilities [C, V] that they were drawn from.
    """
    first = jax.random.categorical(_key(key, position, _FIRST), next_V).astype(jnp.int32)

    def one(carry: tuple[jax.Array, jax.Array], logits_V: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple]:
        recent_R, position = carry
        log_q_V = log_probabilities(logits_V, recent_R, config)
        byte = jax.random.categorical(_key(key, position, _LATER), log_q_V).astype(jnp.int32)
        return (push(recent_R, byte), position + 1), (byte, log_q_V)

    _, (bytes_X, log_q_XV) = jax.lax.scan(one, (push(recent_R, first), position + 1), later_XV)
    return jnp.append(first, bytes_X), jnp.concatenate([next_V[None], log_q_XV])


def after_each(recent_R: jax.Array, bytes_C: jax.Array) -> jax.Array:
    """The remembered bytes after each of some new ones, [C, R]."""
    both = jnp.concatenate([recent_R, bytes_C])
    return both[1 + jnp.arange(len(bytes_C))[:, None] + jnp.arange(len(recent_R))]


def verify(
    key: jax.Array, position: jax.Array, bytes_C: jax.Array, log_q_CV: jax.Array, log_p_CV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which bytes of a draft stand.

    Args:
        key, position: as in `draft`.
        bytes_C: the draft.
        log_q_CV: what its bytes were drawn from.
        log_p_CV: the next-byte head's log-probabilities after each of its bytes, all rules applied.

    Returns:
        How many bytes stand (1 to C), and the log-probabilities [V] of the byte after them.
    """
    C = len(bytes_C)
    keys = jax.vmap(lambda i: _key(key, position + i, _ACCEPT))(jnp.arange(1, C))
    uniform_X = jax.vmap(jax.random.uniform)(keys)
    stands_X = accepts(uniform_X, bytes_C[1:], log_q_CV[1:], log_p_CV[:-1])
    count = 1 + jnp.sum(jnp.cumprod(stands_X.astype(jnp.int32)))
    target_V = log_p_CV[count - 1]
    fallen_V = log_q_CV[jnp.minimum(count, C - 1)]
    return count, jnp.where(count < C, residual(target_V, fallen_V), target_V)


def accepts(uniform_X: jax.Array, bytes_X: jax.Array, log_q_XV: jax.Array, log_p_XV: jax.Array) -> jax.Array:
    """Whether each byte, drawn from q, stands under p: bool [X], with probability min(1, p / q)."""
    log_p, log_q = (jnp.take_along_axis(log_XV, bytes_X[:, None], axis=1)[:, 0] for log_XV in (log_p_XV, log_q_XV))
    return uniform_X < jnp.exp(log_p - log_q)


def residual(log_p_V: jax.Array, log_q_V: jax.Array) -> jax.Array:
    """Log of max(p - q, 0), normalised: what to draw from where a byte of q fell; p where round-off leaves nothing."""
    left_V = jnp.maximum(jnp.exp(log_p_V) - jnp.exp(log_q_V), 0.0)
    total = jnp.sum(left_V)
    return jnp.where(total > 0, jnp.log(left_V / jnp.where(total > 0, total, 1.0)), log_p_V)


def _key(key: jax.Array, position: jax.Array, purpose: int) -> jax.Array:
    return jax.random.fold_in(key, 3 * position + purpose)
