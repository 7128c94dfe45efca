"""Sampling rules as tables, and plain decoding that equals the model position by position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.generation import Decoder, SamplingConfig, receptive_field, sample_byte
from fftlm_jax.generation.cli import terminal_text
from fftlm_jax.generation.sampling import keep_top_k, keep_top_p, penalise_repetition
from fftlm_jax.model import build, init_params
from fftlm_jax.spectral import LowPass, no_filter
from tests.tiny import tiny

LOGITS = jnp.log(jnp.asarray([0.5, 0.25, 0.15, 0.1]))


def kept(logits) -> list[int]:
    return np.flatnonzero(np.isfinite(logits)).tolist()


@pytest.mark.parametrize(
    "k,expected", ((0, [0, 1, 2, 3]), (1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3]))
)
def test_top_k(k, expected):
    assert kept(keep_top_k(LOGITS, k)) == expected


@pytest.mark.parametrize(
    "p,expected", ((1.0, [0, 1, 2, 3]), (0.9, [0, 1, 2]), (0.76, [0, 1, 2]), (0.74, [0, 1]), (0.4, [0]), (1e-9, [0]))
)
def test_top_p_keeps_the_smallest_sufficient_set(p, expected):
    assert kept(keep_top_p(LOGITS, p)) == expected
    order = jnp.asarray([2, 0, 3, 1])
    assert sorted(np.asarray(order)[kept(keep_top_p(LOGITS[order], p))]) == expected


def test_repetition_penalty_makes_seen_bytes_less_likely_whatever_their_sign():
    logits, seen = jnp.asarray([2.0, -2.0, 2.0]), jnp.asarray([True, True, False])
    np.testing.assert_allclose(penalise_repetition(logits, seen, 2.0), [1.0, -4.0, 2.0])
    np.testing.assert_array_equal(penalise_repetition(logits, seen, 1.0), logits)


def test_temperature_zero_is_greedy_and_samples_follow_the_distribution():
    seen = jnp.zeros(4, bool)
    greedy = SamplingConfig(temperature=0.0)
    assert all(int(sample_byte(jax.random.key(i), LOGITS, seen, greedy)) == 0 for i in range(5))
    draw = jax.vmap(lambda key: sample_byte(key, LOGITS, seen, SamplingConfig()))
    counts = np.bincount(draw(jax.random.split(jax.random.key(0), 20000)), minlength=4) / 20000
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.15, 0.1], atol=0.015)
    sharp = jax.vmap(lambda key: sample_byte(key, LOGITS, seen, SamplingConfig(temperature=0.5)))
    squared = np.square([0.5, 0.25, 0.15, 0.1])
    counts = np.bincount(sharp(jax.random.split(jax.random.key(0), 20000)), minlength=4) / 20000
    np.testing.assert_allclose(counts, squared / squared.sum(), atol=0.015)


@pytest.fixture(scope="module")
def model():
    config = tiny(model__seq_len=64).model
    graph, _ = build(config)
    params = init_params(config, 0)
    # Sharper than at initialisation, so that greedy bytes are far from ties.
    params["head"]["kernel"] = params["head"]["kernel"] * 100
    return config, graph, params


@pytest.mark.parametrize("prompt", (b"a", b"hello ", bytes(range(90)), b""))
def test_greedy_decoding_equals_the_full_model_byte_by_byte(model, prompt):
    config, graph, params = model
    assert receptive_field(config) == 23
    text = Decoder(config, graph, no_filter(64)).generate(params, prompt, 40, SamplingConfig(temperature=0.0), 0)
    full = nnx.merge(graph, params)
    sequence = np.frombuffer((prompt or b"\n") + text, np.uint8)
    logits = np.asarray(full.head.next_byte(full(jnp.asarray(sequence[None]), no_filter(64))))[0]
    assert len(text) == 40
    assert (np.argmax(logits[-41:-1], axis=-1) == np.frombuffer(text, np.uint8)).all()


@pytest.mark.parametrize(
    "overrides,stride",
    (
        ({"mixer": "attention"}, 1),
        ({"memory": "aligned", "memory_piece": 8}, 8),
        ({"memory": "polar", "memory_piece": 64}, 64),
    ),
)
def test_endless_memories_decode_over_windows_that_begin_at_whole_pieces(overrides, stride):
    """Byte i follows from the longest context of at most a window that begins at a multiple of the piece."""
    config = dataclasses.replace(tiny(model__seq_len=64).model, **overrides)
    graph, _ = build(config)
    params = init_params(config, 0)
    params["head"]["kernel"] = params["head"]["kernel"] * 100
    text = Decoder(config, graph, no_filter(64)).generate(params, b"def ", 90, SamplingConfig(temperature=0.0), 0)
    full = nnx.merge(graph, params)
    sequence = np.frombuffer(b"def " + text, np.uint8)
    next_byte = jax.jit(lambda window: full.head.next_byte(full(window, no_filter(64))))
    for i in (4, 63, 64, 65, 70, 93):
        start = -(-max(0, i - 64) // stride) * stride
        window = np.zeros((1, 64), np.uint8)
        window[0, : i - start] = sequence[start:i]
        assert np.argmax(next_byte(window)[0, i - start - 1]) == sequence[i]


def test_a_signal_mask_is_decoded_at_the_end_of_full_windows(model):
    """Anywhere else a byte would be predicted from the zeros behind it."""
    config, graph, params = model
    low_pass = LowPass(20, 33, "signal")
    text = Decoder(config, graph, low_pass).generate(params, b"hello", 6, SamplingConfig(temperature=0.0), 0)
    full = nnx.merge(graph, params)
    sequence = b"\n" * 59 + b"hello" + text
    for i in range(6):
        window = np.frombuffer(sequence[i : i + 64], np.uint8)[None]
        assert np.argmax(full.head.next_byte(full(jnp.asarray(window), low_pass))[0, -1]) == text[i]


def test_seeds_repeat(model):
    config, graph, params = model
    decoder = Decoder(config, graph, no_filter(64))
    texts = [decoder.generate(params, b"x", 30, SamplingConfig(temperature=5.0), seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "data,text",
    (
        (b"plain\ntext", "plain\ntext"),
        ("é 漢".encode(), "é 漢"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\x07\r\x00", "\\x07\\r\\x00"),
        (b"\xff\x80", "\\xff\\x80"),
        ("\u009b31m\u202e".encode(), "\\x9b31m\\u202e"),
    ),
)
def test_generated_bytes_cannot_drive_a_terminal(data, text):
    assert terminal_text(data) == text
