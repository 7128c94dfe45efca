"""Bytes drafted several at a time, and which of them the next-byte head lets stand (speculative sampling).

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

import jax
import jax.numpy as jnp

from fftlm_jax.generation.sampling import SamplingConfig, log_probabilities, push

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
