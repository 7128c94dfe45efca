"""The model block by block from a state is the model: every mixer, memory and cutoff, every split, every batch."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.model.streaming import Stream, lay_out
from fftlm_jax.spectral import LowPass, no_filter
from tests.model.lively import graph_and_params
from tests.tiny import tiny

# What users see as a warning of ours, under `python -X dev`, is an error here.
pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning:fftlm_jax")

SEQ_LEN, BINS = 48, 25
ROWS, LONGEST = 4, 4 * SEQ_LEN  # Of all texts, which shorter ones are padded to: each model is compiled once.
TOLERANCE = 2e-5  # Of hidden states of size 1, in float32: round-off, and no more.
SPLIT = (13, 1, 13, 1, 1, 1, 13, 1, 1, 1, 1, 1)  # Blocks of 13 and single bytes: no multiples of a piece or kernel.
VARIANTS = {
    "convolution": {"n_layers": 2},
    "taps": {"kernel_basis": "taps"},
    "plain block": {"projections": False, "conv_heads": 1, "kernel_basis": "taps"},
    "kernels longer than a block": {"kernel_len": 40},
    "kernels of one tap": {"kernel_len": 1},
    "attention": {"mixer": "attention", "attention_heads": 2},
    "aligned memory": {"memory": "aligned", "memory_piece": 16},
    "polar memory": {"memory": "polar", "memory_piece": 5},
    "attention and memory": {
        "mixer": "attention", "attention_heads": 4, "memory": "polar", "memory_piece": 8, "n_layers": 2,
    },
}  # fmt: skip


def config_of(variant: str, **overrides):
    rule = "none" if "mixer" in VARIANTS[variant] else "plateau"
    options = {"seq_len": SEQ_LEN, "n_layers": 1, **VARIANTS[variant], **overrides}
    return tiny(curriculum__rule=rule, **{f"model__{name}": value for name, value in options.items()}).model


@functools.lru_cache
def weights_of(config, low_pass=None):
    graph, params = graph_and_params(config)
    return lay_out(config, graph, params, low_pass or no_filter(SEQ_LEN))


def stream_of(config, weights, block):
    return Stream(config, graph_and_params(config)[0], weights, block)


@functools.partial(jax.jit, static_argnums=0)
def _extend(config, weights, state, bytes_BS, count_B):
    stream = stream_of(config, weights, bytes_BS.shape[1])
    hidden_BSD, trail = stream.extend(state, bytes_BS)
    return hidden_BSD, stream.keep(trail, count_B), stream.keep(trail)


def extend(config, state, bytes_BS, counts=None, low_pass=None):
    """Hidden states at some bytes, and the state after the first `counts` of them in each row; None for all."""
    some = np.full(ROWS, bytes_BS.shape[1]) if counts is None else np.asarray(counts)
    hidden, kept, whole = _extend(config, weights_of(config, low_pass), state, bytes_BS, some)
    return hidden, whole if counts is None else kept


@functools.partial(jax.jit, static_argnums=0)
def _empty(config, weights):
    return stream_of(config, weights, 1).empty(ROWS)


def empty(config):
    return _empty(config, weights_of(config))


def by_blocks(config, text_BT, split=SPLIT, low_pass=None):
    state, found = empty(config), []
    for start, size in zip(np.cumsum((0, *split)), split):
        hidden, state = extend(config, state, text_BT[:, start : start + size], low_pass=low_pass)
        found.append(hidden)
    return np.concatenate(found, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _in_full(config, params, text_BT, low_pass):
    return nnx.merge(graph_and_params(config)[0], params)(text_BT, low_pass)


def in_full(config, text_BT, low_pass=None):
    """What the training forward pass gives, on windows padded to a multiple of the training window."""
    rows, length = text_BT.shape
    padded = np.pad(text_BT, ((0, ROWS - rows), (0, LONGEST - length)))
    _, params = graph_and_params(config)
    return np.asarray(_in_full(config, params, padded, low_pass or no_filter(SEQ_LEN)))[:rows, :length]


def text(length: int = SEQ_LEN, seed: int = 0) -> np.ndarray:
    data = np.random.default_rng(seed).integers(0, 256, (ROWS, length)).astype(np.uint8)
    data[:, 3:21] = 97  # A stretch in which a memory hears nothing.
    return data


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_of_any_sizes_give_the_hidden_states_of_the_full_forward_pass(variant):
    config = config_of(variant)
    np.testing.assert_allclose(by_blocks(config, text()), in_full(config, text()), atol=TOLERANCE)


@pytest.mark.parametrize(
    "variant,method,cutoff",
    (
        ("convolution", "cosine", 3),
        ("convolution", "cosine", 12),
        ("convolution", "minimum_phase", 6),
        ("convolution", "signal", BINS),
        ("taps", "cosine", 6),
        ("taps", "minimum_phase", 12),
    ),
)
def test_so_do_they_at_every_cutoff(variant, method, cutoff):
    low_pass = LowPass(cutoff, BINS, method, 2)
    config = config_of(variant, n_layers=1)
    found = by_blocks(config, text(), low_pass=low_pass)
    np.testing.assert_allclose(found, in_full(config, text(), low_pass), atol=TOLERANCE)
    if cutoff < BINS:
        assert np.abs(found - in_full(config, text())).max() > 100 * TOLERANCE, "the cutoff matters here"


def test_a_mask_on_signals_has_no_state():
    with pytest.raises(ValueError, match="sees the whole window"):
        weights_of(config_of("convolution"), LowPass(5, BINS, "signal"))


@pytest.mark.parametrize("variant", ("convolution", "plain block", "aligned memory"))
def test_bfloat16_gives_the_hidden_states_of_the_full_forward_pass(variant):
    """Both round the same operands; of one layer, since round-off may tip a rounding in the next."""
    config, high = (config_of(variant, dtype=dtype, n_layers=1) for dtype in ("bfloat16", "float32"))
    np.testing.assert_allclose(by_blocks(config, text()), in_full(config, text()), atol=TOLERANCE)
    assert np.abs(in_full(config, text()) - in_full(high, text())).max() > 1e-3, "operands are rounded"


def test_bfloat16_attention_differs_by_its_own_rounding():
    """Its weights are rounded too, before they are divided by their sum or after."""
    config = config_of("attention", dtype="bfloat16", n_layers=1)
    apart = np.abs(by_blocks(config, text()) - in_full(config, text()))
    assert apart.max() < 0.05 and apart.mean() < 0.005


def test_heads_give_the_models_logits():
    config = config_of("convolution")
    graph, params = graph_and_params(config)

    @jax.jit
    def logits(weights, params, hidden):
        stream, head = stream_of(config, weights, 1), nnx.merge(graph, params).head
        return (stream.next_byte(hidden), stream.chunk(hidden)), (head.next_byte(hidden), head.chunk(hidden))

    hidden = np.random.default_rng(0).normal(size=(2, 3, config.d_model)).astype(np.float32)
    for found, expected in zip(*logits(weights_of(config), params, hidden)):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("variant", ("convolution", "attention", "aligned memory", "polar memory"))
def test_rows_that_take_in_different_numbers_of_bytes_are_rows_alone(variant):
    """Blocks of which each row keeps its own part, as after a draft; what follows is as if none was ever lost."""
    config, data = config_of(variant), text()
    state, kept = empty(config), [b""] * 4
    for start, counts in ((0, (13, 0, 3, 1)), (13, (12, 13, 0, 2))):
        block = data[:, start : start + 13]
        _, state = extend(config, state, block, counts)
        kept = [old + row[:n].tobytes() for old, row, n in zip(kept, block, counts)]
    after, _ = extend(config, state, data[:, :13])
    for row, prefix in enumerate(kept):
        whole = np.frombuffer(prefix + data[row, :13].tobytes(), np.uint8)
        alone = in_full(config, whole[None])[0, len(prefix) :]
        np.testing.assert_allclose(after[row], alone, atol=TOLERANCE)


@pytest.mark.parametrize("variant", ("convolution", "attention", "polar memory"))
def test_keeping_nothing_or_everything_is_exact(variant):
    """Bit for bit."""
    config = config_of(variant)
    _, state = extend(config, empty(config), text()[:, :13])
    _, same = extend(config, state, text()[:, 13:26], [0] * ROWS)
    jax.tree.map(np.testing.assert_array_equal, state, same)
    _, counted = extend(config, state, text()[:, 13:26], [13] * ROWS)
    _, whole = extend(config, state, text()[:, 13:26])
    jax.tree.map(np.testing.assert_array_equal, whole, counted)


@pytest.mark.parametrize("variant", ("convolution", "polar memory", "aligned memory"))
def test_texts_beyond_the_training_window_go_on_as_one(variant):
    """Neither convolutions nor memories know of windows: four of them at once are the same."""
    config, data = config_of(variant), text(length=LONGEST)
    np.testing.assert_allclose(by_blocks(config, data, SPLIT * 4), in_full(config, data), atol=TOLERANCE)


def test_attention_slides_a_window_through_them():
    """With one layer, each byte is what it would be at the end of a training window."""
    config, data = config_of("attention"), text(length=LONGEST)
    found = by_blocks(config, data, SPLIT * 4)
    for t in (10, 47, 48, 60, 95, 190):
        window = data[:, max(0, t - SEQ_LEN + 1) : t + 1]
        np.testing.assert_allclose(found[:, t], in_full(config, window)[:, -1], atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_state_does_not_grow(variant):
    config = config_of(variant)
    state = empty(config)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for start in range(0, 130, 13):
        _, state = extend(config, state, text(length=130)[:, start : start + 13])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
    if "mixer" not in VARIANTS[variant]:
        assert all(past.shape == (ROWS, config.d_model, config.kernel_len - 1) for past in state.pasts)


@pytest.mark.parametrize("variant", VARIANTS)
def test_later_bytes_of_a_block_change_nothing_before_them(variant):
    """To the last bit, byte 9 being inside a block, a piece and a kernel's reach."""
    config = config_of(variant)
    _, state = extend(config, empty(config), text()[:, :13])
    block = text()[:, 13:26]
    changed = np.concatenate([block[:, :9], text(seed=1)[:, 22:26] ^ 1], axis=1)
    moved = np.asarray(extend(config, state, block)[0]) - np.asarray(extend(config, state, changed)[0])
    moved = np.abs(moved).max(axis=(0, 2))
    assert (moved[:9] == 0).all() and moved[9] > 1e-3
