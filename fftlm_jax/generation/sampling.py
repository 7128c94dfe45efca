"""Choosing the next byte from logits: pure functions of one position's logits, float32 [V] with V = 256."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How bytes are chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest byte.
        top_k: keep only the k likeliest bytes; 0 keeps all.
        top_p: keep the smallest set of likeliest bytes whose probability reaches p; 1 keeps all.
        repetition_penalty: logits of bytes in the model's context are divided by it where positive and multiplied
            where negative (Keskar et al. 2019, CTRL); 1 leaves them alone.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


def sample_byte(key: jax.Array, logits_V: jax.Array, seen_V: jax.Array, config: SamplingConfig) -> jax.Array:
    """Draws one byte (int32 scalar) after the penalty, temperature, top-k and top-p, in this order.

    Args:
        key: PRNG key; unused when greedy.
        logits_V: logits of the next byte.
        seen_V: bool, which bytes occur in the context.
        config: static.
    """
    logits_V = penalise_repetition(logits_V, seen_V, config.repetition_penalty)
    if config.temperature == 0.0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    logits_V = keep_top_p(keep_top_k(logits_V / config.temperature, config.top_k), config.top_p)
    return jax.random.categorical(key, logits_V).astype(jnp.int32)


def penalise_repetition(logits_V: jax.Array, seen_V: jax.Array, penalty: float) -> jax.Array:
    """Makes bytes that were seen less likely."""
    if penalty == 1.0:
        return logits_V
    return jnp.where(seen_V, jnp.where(logits_V > 0, logits_V / penalty, logits_V * penalty), logits_V)


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
