"""Decoding: plain equals the model position by position, cached equals plain, and modes, batches and blocks agree."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.generation import Decoder, PlainDecoder, SamplingConfig, decoder_for, receptive_field
from fftlm_jax.spectral import LowPass, no_filter
from tests.model.lively import graph_and_params
from tests.tiny import tiny

GREEDY = SamplingConfig(temperature=0.0)
# Three letters, nearly uniform: rules have something to do at every byte.
RULED = SamplingConfig(
    temperature=6.0,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.3,
    repetition_window=9,
    longest_run=2,
    ascii_only=True,
    banned=bytes(set(range(128)) - set(b"xyz")),
)
PROMPTS = (b"a", b"hello ", bytes(range(90)), b"")
LONGEST = 90 + 128


class Model:
    """A model and its decoders, each compiled once for all tests."""

    def __init__(self, low_pass=None, **overrides):
        self.config = dataclasses.replace(tiny(model__seq_len=64, model__n_layers=1).model, **overrides)
        self.graph, params = graph_and_params(self.config)
        loud = {"memory": jax.tree.map(lambda leaf: 4 * leaf, params["memory"])} if "memory" in params else {}
        self.params = params | loud  # What a memory says decides which byte is likeliest.
        self.low_pass = low_pass or no_filter(64)
        self._plain = PlainDecoder(self.config, self.graph, self.low_pass)
        self._cached = Decoder(self.config, self.graph, self.low_pass)
        self._full = jax.jit(self._logits)

    def plain(self, prompts, length, sampling, **options):
        return self._plain.generate(self.params, prompts, length, sampling, **options)

    def cached(self, prompts, length, sampling, **options):
        return self._cached.generate(self.params, prompts, length, sampling, **options)

    def blocks(self, prompts, length, sampling, **options):
        return list(self._cached.stream(self.params, prompts, length, sampling, **options))

    def full(self, bytes_BT):
        """Likeliest next byte [B, T] and chunk [B, T, C] by the model's forward pass."""
        return jax.device_get(self._full(self.params, bytes_BT))

    def full_text(self, text):
        """The same after each byte of one text, which zeros fill up to the longest."""
        next_byte, chunk = self.full(np.frombuffer(text.ljust(LONGEST, b"\0"), np.uint8)[None])
        return next_byte[0, : len(text)], chunk[0, : len(text)]

    def _logits(self, params, bytes_BT):
        model = nnx.merge(self.graph, params)
        hidden = model(bytes_BT, self.low_pass)
        return model.head.next_byte(hidden).argmax(-1), model.head.chunk(hidden).argmax(-1)


@functools.cache
def model_of(**overrides):
    return Model(**overrides)


@pytest.fixture(scope="module")
def model():
    yield model_of(n_layers=2)
    model_of.cache_clear()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_plain_greedy_decoding_equals_the_full_model_byte_by_byte(model, prompt):
    assert receptive_field(model.config) == 23
    (text,) = model.plain([prompt], 128, GREEDY)
    next_byte, _ = model.full_text((prompt or b"\n") + text)
    assert len(text) == 128 and len(set(text)) > 4
    assert (next_byte[-129:-1] == np.frombuffer(text, np.uint8)).all()


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
    model = model_of(**overrides)
    (text,) = model.plain([b"def "], 90, GREEDY)
    sequence = np.frombuffer(b"def " + text, np.uint8)
    places = range(4, 94)
    starts = [-(-max(0, i - 64) // stride) * stride for i in places]
    windows = np.zeros((len(places), 64), np.uint8)
    for window, start, i in zip(windows, starts, places):
        window[: i - start] = sequence[start:i]
    next_byte, _ = model.full(windows)
    assert [found[i - start - 1] for found, start, i in zip(next_byte, starts, places)] == [sequence[i] for i in places]


def test_a_signal_mask_is_decoded_at_the_end_of_full_windows():
    """Anywhere else a byte would be predicted from the zeros behind it."""
    model = Model(LowPass(20, 33, "signal"))
    decoder = decoder_for(model.config, model.graph, model.low_pass)
    assert isinstance(decoder, PlainDecoder)
    (text,) = decoder.generate(model.params, [b"hello"], 6, GREEDY)
    sequence = b"\n" * 59 + b"hello" + text
    next_byte, _ = model.full(np.stack([np.frombuffer(sequence[i : i + 64], np.uint8) for i in range(6)]))
    assert (next_byte[:, -1] == np.frombuffer(text, np.uint8)).all()
    with pytest.raises(ValueError, match="byte by byte"):
        decoder.generate(model.params, [b"hello"], 6, GREEDY, mode="chunk")


@pytest.mark.parametrize(
    "mode,sampling", (("byte", GREEDY), ("speculative", GREEDY), ("byte", RULED)), ids=("byte", "speculative", "ruled")
)
def test_cached_decoding_of_a_batch_writes_what_plain_decoding_does(model, mode, sampling):
    """Prompts of different lengths, one beyond the receptive field and the window; texts of two windows."""
    cached = model.cached(PROMPTS, 128, sampling, seed=5, mode=mode)
    assert cached == model.plain(PROMPTS, 128, sampling, seed=5) and [len(text) for text in cached] == [128] * 4


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
    model = model_of(**overrides)
    plain = [text[:50] for text in model.plain(PROMPTS[:2], 90, GREEDY)]
    assert model.cached(PROMPTS[:2], 50, GREEDY, mode=mode) == plain


def test_so_does_it_at_a_cutoff():
    low = Model(LowPass(8, 33), projections=False, conv_heads=1)
    assert isinstance(decoder_for(low.config, low.graph, low.low_pass), Decoder)
    cached = low.cached(PROMPTS[:2], 50, GREEDY)
    assert cached == low.plain(PROMPTS[:2], 50, GREEDY)
    assert cached != model_of(projections=False, conv_heads=1).cached(PROMPTS[:2], 50, GREEDY)


@pytest.mark.parametrize("mode", ("byte", "chunk", "speculative"))
def test_a_row_is_the_same_in_other_company(model, mode):
    together = model.cached(PROMPTS, 50, RULED, seed=3, mode=mode)
    assert len(set(together)) == 4
    apart = model.cached((b"b" * 30, PROMPTS[2], b"c", PROMPTS[1]), 50, RULED, seed=3, mode=mode, rows=(7, 2, 0, 1))
    assert (apart[1], apart[3]) == (together[2], together[1])


def test_a_text_is_the_same_in_blocks_of_any_length_and_a_smaller_batch(model):
    """Rows of which some are ahead wait for the others."""
    how = {"seed": 3, "mode": "speculative"}
    blocks = model.blocks(PROMPTS[1:3], 50, RULED, block=20, rows=[1, 2], **how)
    assert len(blocks) == 3
    texts = [b"".join(rows) for rows in zip(*(block.written for block in blocks))]
    assert texts == model.cached(PROMPTS, 50, RULED, **how)[1:3]


def test_seeds_and_rows_differ_and_repeat(model):
    texts = [model.cached([b"x" * 20] * 4, 30, RULED, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] and len({*texts[0], *texts[2]}) == 8


def test_greedy_chunks_are_those_of_the_chunk_head(model):
    """Each chunk from the hidden state at the end of all before, whatever its place in a training window."""
    for prompt, text in zip(PROMPTS[:3], model.cached(PROMPTS, 20, GREEDY, mode="chunk")):
        _, chunks = model.full_text(prompt + text)
        found = [chunks[len(prompt) + at - 1].astype(np.uint8).tobytes() for at in (0, 4, 8, 12, 16)]
        assert b"".join(found) == text


@pytest.mark.parametrize("mode", ("byte", "chunk", "speculative"))
def test_rules_hold_in_every_mode_and_from_the_prompt_on(model, mode):
    prompts = (b"yy", b"hello xx", bytes(range(90)) + b"zz", b"")
    for seed in range(6):
        for prompt, text in zip(prompts, model.cached(prompts, 60, RULED, seed=seed, mode=mode)):
            assert set(text) == set(b"xyz")
            assert not any(run in prompt[-2:] + text for run in (b"xxx", b"yyy", b"zzz"))


def test_what_was_drafted_and_what_stood_is_counted(model):
    blocks = model.blocks(PROMPTS, 128, GREEDY, mode="speculative")
    drafted, accepted = (sum(getattr(block, name) for block in blocks) for name in ("drafted", "accepted"))
    chunk = model.config.chunk
    rounds = drafted / (chunk - 1)
    assert rounds == int(rounds) and 0 <= accepted < drafted
    assert 4 * 128 <= rounds + accepted < 4 * (128 + chunk), "a round writes one byte and those that stood"
    (byte,) = model.blocks(PROMPTS, 8, GREEDY)
    assert (byte.drafted, byte.accepted) == (0, 0)


def test_an_unknown_mode_is_named(model):
    with pytest.raises(ValueError, match="'bytes' is none of byte, chunk, speculative"):
        model.cached([b"a"], 4, GREEDY, mode="bytes")
