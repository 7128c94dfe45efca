"""Speculative sampling writes what byte-by-byte sampling writes: exact laws, and a test that wrong rules fail."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from fftlm_jax.generation import Decoder, SamplingConfig, sampling
from fftlm_jax.generation.sampling import log_probabilities, remember
from fftlm_jax.model.streaming import Stream, lay_out
from fftlm_jax.spectral import no_filter
from tests.model.lively import graph_and_params
from tests.tiny import tiny

ROWS = 512
LETTERS = b"abc"
OTHERS = bytes(set(range(256)) - set(LETTERS))
PROMPT = b"ab"
PLAIN = SamplingConfig(temperature=1.2, banned=OTHERS)
RULED = SamplingConfig(
    temperature=1.5, top_p=0.95, repetition_penalty=1.5, repetition_window=2, longest_run=2, banned=OTHERS
)


def two_laws(seed: int = 0):
    """Target and draft over 5 values: apart, and each with a value that the other never takes."""
    p, q = np.random.default_rng(seed).dirichlet(np.ones(5), 2)
    p[1], q[3] = 0, 0
    with np.errstate(divide="ignore"):
        return [np.log((law / law.sum()).astype(np.float32)) for law in (p, q)]


residual = jax.jit(sampling.residual)


def test_a_byte_that_stands_or_is_drawn_anew_follows_the_target():
    """In closed form: q min(1, p / q), and the mass that fell spread as the residual, add up to p."""
    log_p, log_q = two_laws()
    p, q = np.exp(log_p), np.exp(log_q)
    grid = ((np.arange(4000) + 0.5) / 4000).astype(np.float32)  # In place of uniform numbers.
    many = lambda law: np.tile(law, (len(grid), 1))
    accepts = jax.jit(sampling.accepts)
    each = [accepts(grid, np.full(len(grid), x), many(log_q), many(log_p)) for x in range(5)]
    stood = np.mean(each, axis=1)
    np.testing.assert_allclose(stood[q > 0], np.minimum(1, p / np.where(q > 0, q, 1))[q > 0], atol=1e-3)
    fallen = (q * (1 - stood)).sum()
    np.testing.assert_allclose(q * stood + fallen * np.exp(residual(log_p, log_q)), p, atol=1e-3)


def test_equal_laws_leave_no_residual_and_fall_back_on_the_target():
    log_p, _ = two_laws()
    np.testing.assert_array_equal(residual(log_p, log_p), log_p)


def test_what_was_remembered_after_each_byte():
    recent, new = np.asarray([1, 2, 3]), np.asarray([4, 5])
    after_each = jax.jit(sampling.after_each)
    np.testing.assert_array_equal(after_each(recent, new), [[2, 3, 4], [3, 4, 5]])
    np.testing.assert_array_equal(after_each(recent[:1], new), [[4], [5]])
    assert after_each(recent[:0], new).shape == (2, 0)


@functools.lru_cache
def model():
    """A model of chunks of 4 whose later heads are far from its first."""
    config = tiny(model__seq_len=32, model__n_layers=1).model
    return config, *graph_and_params(config)


@functools.lru_cache
def exact_law(sampling: SamplingConfig) -> np.ndarray:
    """Probabilities [3, 3, 3, 3] of the four letters after the prompt, by the chain rule of `byte`."""
    config, graph, params = model()
    weights = lay_out(config, graph, params, no_filter(32))
    contexts = [bytes(c) for n in range(4) for c in itertools.product(LETTERS, repeat=n)]
    texts = np.zeros((len(contexts), 5), np.int32)
    for row, context in zip(texts, contexts):
        row[: len(PROMPT + context)] = list(PROMPT + context)

    @jax.jit
    def laws(weights, texts, lengths, recents):
        stream = Stream(config, graph, weights, 5)
        hidden, _ = stream.extend(stream.empty(len(contexts)), texts)
        logits = stream.next_byte(hidden[jnp.arange(len(contexts)), lengths - 1])
        return jax.vmap(lambda logits, recent: log_probabilities(logits, recent, sampling))(logits, recents)

    recents = np.stack([remember(PROMPT + c, sampling.memory) for c in contexts])
    lengths = np.asarray([len(PROMPT + c) for c in contexts])
    next_of = dict(zip(contexts, np.exp(laws(weights, texts, lengths, recents))[:, list(LETTERS)].astype(np.float64)))
    law = np.zeros((3,) * 4)
    for word in itertools.product(range(3), repeat=4):
        law[word] = np.prod([next_of[bytes(LETTERS[i] for i in word[:n])][word[n]] for n in range(4)])
    return law


def p_value(sampling: SamplingConfig, mode: str, block: int = 4) -> float:
    """How likely words at least as far from the exact law as those of ROWS rows are, were they drawn from it."""
    config, graph, params = model()
    prompts = [PROMPT] * ROWS
    blocks = Decoder(config, graph, no_filter(32)).stream(params, prompts, 4, sampling, mode=mode, seed=1, block=block)
    texts = next(blocks).written
    law = exact_law(sampling)
    assert law.sum() == pytest.approx(1, abs=1e-4)
    found = np.zeros_like(law)
    np.add.at(found, tuple(np.searchsorted(list(LETTERS), [list(text) for text in texts]).T), 1)
    if found[law == 0].any():
        return 0.0  # What cannot be.
    expected, found = law[law > 0] * ROWS, found[law > 0]
    rare = expected < 10
    expected = np.append(expected[~rare], expected[rare].sum())
    found = np.append(found[~rare], found[rare].sum())
    expected, found = expected[expected > 0], found[expected > 0]
    return float(chi2.sf(((found - expected) ** 2 / expected).sum(), len(expected) - 1))


@pytest.mark.parametrize("sampling", (PLAIN, RULED), ids=("plain", "ruled"))
@pytest.mark.parametrize("mode", ("byte", "speculative"))
def test_both_modes_follow_the_exact_law_of_four_bytes(mode, sampling):
    assert p_value(sampling, mode) > 1e-3


def always(uniform_X, bytes_X, log_q_XV, log_p_XV):
    return jnp.ones(len(bytes_X), bool)


def the_wrong_way_round(uniform_X, bytes_X, log_q_XV, log_p_XV):
    return drafts_accepts(uniform_X, bytes_X, log_p_XV, log_q_XV)


def half_as_often(uniform_X, bytes_X, log_q_XV, log_p_XV):
    return drafts_accepts(2 * uniform_X, bytes_X, log_q_XV, log_p_XV)


drafts_accepts = sampling.accepts
FAULTS = {
    "every draft stands": ("accepts", always),
    "p and q exchanged": ("accepts", the_wrong_way_round),
    "drafts stand half as often": ("accepts", half_as_often),
    "redrawn from the target": ("residual", lambda log_p_V, log_q_V: log_p_V),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rule_is_caught(monkeypatch, fault):
    name, wrong = FAULTS[fault]
    monkeypatch.setattr(sampling, name, wrong)
    block = 100 + list(FAULTS).index(fault)  # Compiled anew: the right rule is in the other one.
    assert p_value(PLAIN, "speculative", block) < 1e-9
