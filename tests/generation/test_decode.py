"""Decoding: plain equals the model position by position, cached equals plain, and modes, batches and blocks agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.generation import Decoder, PlainDecoder, SamplingConfig, decoder_for, receptive_field
from fftlm_jax.model import build, init_params
from fftlm_jax.spectral import LowPass, no_filter
from tests.tiny import tiny

GREEDY = SamplingConfig(temperature=0.0)
RULED = SamplingConfig(
    temperature=3.0, top_p=0.9, min_p=0.01, repetition_penalty=1.3, repetition_window=9, longest_run=2, ascii_only=True
)
PROMPTS = (b"a", b"hello ", bytes(range(90)), b"")


def model_of(**overrides):
    config = dataclasses.replace(tiny(model__seq_len=64).model, **overrides)
    params = init_params(config, 0)
    # Sharper than at initialisation, so that greedy bytes are far from ties.
    params["head"]["kernel"] = params["head"]["kernel"] * 100
    return config, build(config)[0], params


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_plain_greedy_decoding_equals_the_full_model_byte_by_byte(model, prompt):
    config, graph, params = model
    assert receptive_field(config) == 23
    (text,) = PlainDecoder(config, graph, no_filter(64)).generate(params, [prompt], 40, GREEDY)
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
def test_endless_memories_decode_plainly_over_windows_that_begin_at_whole_pieces(overrides, stride):
    """Byte i follows from the longest context of at most a window that begins at a multiple of the piece."""
    config, graph, params = model_of(**overrides)
    (text,) = PlainDecoder(config, graph, no_filter(64)).generate(params, [b"def "], 90, GREEDY)
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
    decoder = decoder_for(config, graph, low_pass)
    assert isinstance(decoder, PlainDecoder)
    (text,) = decoder.generate(params, [b"hello"], 6, GREEDY)
    full = nnx.merge(graph, params)
    sequence = b"\n" * 59 + b"hello" + text
    for i in range(6):
        window = np.frombuffer(sequence[i : i + 64], np.uint8)[None]
        assert np.argmax(full.head.next_byte(full(jnp.asarray(window), low_pass))[0, -1]) == text[i]
    with pytest.raises(ValueError, match="byte by byte"):
        decoder.generate(params, [b"hello"], 6, GREEDY, mode="chunk")


@pytest.mark.parametrize(
    "mode,sampling", (("byte", GREEDY), ("speculative", GREEDY), ("byte", RULED)), ids=("byte", "speculative", "ruled")
)
def test_cached_decoding_of_a_batch_writes_what_plain_decoding_does(model, mode, sampling):
    """Prompts of different lengths, one beyond the receptive field and the window; texts of two windows."""
    config, graph, params = model
    plain = PlainDecoder(config, graph, no_filter(64)).generate(params, PROMPTS, 128, sampling, seed=5)
    cached = Decoder(config, graph, no_filter(64)).generate(params, PROMPTS, 128, sampling, seed=5, mode=mode)
    assert cached == plain and [len(text) for text in cached] == [128] * 4


@pytest.mark.parametrize(
    "mode,overrides",
    (
        ("speculative", {"mixer": "attention"}),
        ("byte", {"memory": "aligned", "memory_piece": 8}),
        ("speculative", {"memory": "polar", "memory_piece": 16, "kernel_basis": "taps"}),
        ("byte", {"projections": False, "conv_heads": 1}),
    ),
    ids=str,
)
def test_so_does_it_with_every_mixer_and_memory_within_the_window(mode, overrides):
    config, graph, params = model_of(**overrides)
    plain = PlainDecoder(config, graph, no_filter(64)).generate(params, PROMPTS[:2], 50, GREEDY)
    assert Decoder(config, graph, no_filter(64)).generate(params, PROMPTS[:2], 50, GREEDY, mode=mode) == plain


def test_so_does_it_at_a_cutoff(model):
    config, graph, params = model
    low_pass = LowPass(8, 33)
    cached = decoder_for(config, graph, low_pass).generate(params, PROMPTS, 30, GREEDY)
    assert cached == PlainDecoder(config, graph, low_pass).generate(params, PROMPTS, 30, GREEDY)
    assert cached != Decoder(config, graph, no_filter(64)).generate(params, PROMPTS, 30, GREEDY)


@pytest.mark.parametrize("mode", ("byte", "chunk", "speculative"))
def test_a_row_is_the_same_alone(model, mode):
    config, graph, params = model
    decoder = Decoder(config, graph, no_filter(64))
    together = decoder.generate(params, PROMPTS, 50, RULED, seed=3, mode=mode)
    assert len(set(together)) == 4
    for row in (1, 2):
        assert decoder.generate(params, [PROMPTS[row]], 50, RULED, seed=3, mode=mode, rows=[row]) == [together[row]]


def test_a_text_is_the_same_in_blocks_of_any_length(model):
    """Rows of which some are ahead wait for the others."""
    config, graph, params = model
    decoder, how = Decoder(config, graph, no_filter(64)), {"seed": 3, "mode": "speculative"}
    blocks = list(decoder.stream(params, PROMPTS, 50, RULED, block=20, **how))
    assert len(blocks) == 3
    texts = [b"".join(rows) for rows in zip(*(block.written for block in blocks))]
    assert texts == decoder.generate(params, PROMPTS, 50, RULED, **how)


def test_seeds_and_rows_differ_and_repeat(model):
    config, graph, params = model
    decoder = Decoder(config, graph, no_filter(64))
    texts = [decoder.generate(params, [b"x"] * 4, 30, RULED, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] and len({*texts[0], *texts[2]}) == 8


def test_greedy_chunks_are_those_of_the_chunk_head(model):
    """Each chunk from the hidden state at the end of all before, whatever its place in a training window."""
    config, graph, params = model
    full = nnx.merge(graph, params)
    (text,) = Decoder(config, graph, no_filter(64)).generate(params, [b"hello"], 20, GREEDY, mode="chunk")
    sequence = b"hello" + text
    chunks = jax.jit(lambda tokens: full.head.chunk(full(tokens, no_filter(64))))
    found = np.argmax(chunks(np.frombuffer(sequence, np.uint8)[None])[0], axis=-1).astype(np.uint8)
    assert b"".join(found[at - 1].tobytes() for at in (5, 9, 13, 17, 21)) == text


@pytest.mark.parametrize("mode", ("byte", "chunk", "speculative"))
def test_rules_hold_in_every_mode_and_from_the_prompt_on(model, mode):
    config, graph, params = model
    letters = SamplingConfig(temperature=1.0, longest_run=2, banned=bytes(set(range(256)) - set(b"xy")))
    decoder = Decoder(config, graph, no_filter(64))
    texts = decoder.generate(params, [b"yyy", b"xx", b""], 60, letters, mode=mode)
    assert texts[0].startswith(b"x") and texts[1].startswith(b"y")
    assert all(set(text) == set(b"xy") and b"xxx" not in text and b"yyy" not in text for text in texts)
    for text in decoder.generate(params, PROMPTS, 60, RULED, mode=mode):
        assert set(text) <= {9, 10, *range(32, 127)}


def test_what_was_drafted_and_what_stood_is_counted(model):
    config, graph, params = model
    decoder = Decoder(config, graph, no_filter(64))
    blocks = list(decoder.stream(params, PROMPTS, 128, GREEDY, mode="speculative"))
    drafted, accepted = (sum(getattr(block, name) for block in blocks) for name in ("drafted", "accepted"))
    rounds = drafted / (config.chunk - 1)
    assert rounds == int(rounds) and 0 <= accepted < drafted
    assert 4 * 128 <= rounds + accepted < 4 * (128 + config.chunk), "a round writes one byte and those that stood"
    byte = next(decoder.stream(params, PROMPTS, 8, GREEDY))
    assert (byte.drafted, byte.accepted) == (0, 0)


def test_an_unknown_mode_is_named(model):
    config, graph, params = model
    with pytest.raises(ValueError, match="'bytes' is none of byte, chunk, speculative"):
        Decoder(config, graph, no_filter(64)).generate(params, [b"a"], 4, GREEDY, mode="bytes")
