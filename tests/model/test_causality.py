"""Nothing sees the future: every mixer, memory, cutoff and filter method, block and model, in every way we can ask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.model import spectral_memory
from fftlm_jax.model.language_model import ResidualBlock
from fftlm_jax.spectral import LowPass, no_filter
from tests.model.lively import graph_and_params

SEQ_LEN, BINS = 160, 81
LOW_PASSES = tuple(LowPass(cutoff, BINS) for cutoff in (10, 20, 40, 80, BINS))


def model_config(**overrides) -> ModelConfig:
    base = ModelConfig(
        seq_len=SEQ_LEN,
        kernel_len=40,
        d_model=16,
        n_layers=2,
        mixer="convolution",
        conv_heads=4,
        kernel_basis="cosine",
        projections=True,
        attention_heads=2,
        ffn_mult=2.0,
        chunk=4,
        memory="none",
        memory_piece=16,
        conv_method="toeplitz",
        dropout=0.0,
        remat="none",
        dtype="float32",
    )
    return dataclasses.replace(base, **overrides)


@functools.cache
def compiled(config: ModelConfig, *low_passes: LowPass):
    """The logits [2, T, C, V] of two windows under each band limit, one program for all of them."""
    graph, params = graph_and_params(config)

    @jax.jit
    def logits(params, bytes_BT):
        model = nnx.merge(graph, params)
        return [model.head.chunk(model(bytes_BT, low_pass)) for low_pass in low_passes]

    return lambda bytes_BT, params=params: np.stack(logits(params, bytes_BT))


@functools.cache
def compiled_gradients(config: ModelConfig, *low_passes: LowPass):
    """By each input byte [T, 256] under each band limit: the gradient of the logits at one position, added up."""
    graph, params = graph_and_params(config)

    @jax.jit
    def gradients(params, is_looked_at_T):
        def looked_at(embedding, low_pass):
            model = nnx.merge(graph, {**params, "embed": {"embedding": embedding}})
            # Every position has an embedding row of its own.
            logits = model.head.chunk(model(jnp.arange(SEQ_LEN)[None], low_pass))
            return (logits.sum(axis=(2, 3)) * is_looked_at_T).sum()

        return [jax.grad(looked_at)(params["embed"]["embedding"], low_pass)[:SEQ_LEN] for low_pass in low_passes]

    return lambda t: np.abs(gradients(params, np.arange(SEQ_LEN) == t)).max(axis=2)


def random_bytes(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, SEQ_LEN)).astype(np.uint8)


def moved_by(logits, t: int) -> np.ndarray:
    """How far each position's logits move where everything from t on is replaced; by band limit, [L, T]."""
    tokens, other = random_bytes(), random_bytes(1)
    changed = np.concatenate([tokens[:, :t], other[:, t:]], axis=1)
    return np.abs(logits(changed) - logits(tokens)).max(axis=(1, 3, 4))


@pytest.mark.parametrize(
    "conv_method,dtype,tolerance",
    (("toeplitz", "float32", 0.0), ("fft", "float32", 3e-6), ("auto", "bfloat16", 0.0)),
)
def test_changed_bytes_move_no_earlier_logits(conv_method, dtype, tolerance):
    """At every cutoff; everything from t on is replaced, t inside a Toeplitz block (70) and at its border (128)."""
    logits = compiled(
        model_config(conv_method=conv_method, dtype=dtype), *LOW_PASSES, LowPass(20, BINS, "minimum_phase", 8)
    )
    size = np.abs(logits(random_bytes())).max(axis=(1, 2, 3, 4))
    for t in (70, 128):
        moved = moved_by(logits, t)
        assert (moved[:, :t].max(axis=1) <= tolerance * size).all()
        assert (moved[:, t] > 1e-3).all()


def first_to_move(config: ModelConfig, low_passes: tuple[LowPass, ...], t: int) -> set[int]:
    """First position whose logits change when all bytes from t on are replaced; asserts that t itself is moved."""
    moved = moved_by(compiled(config, *low_passes), t)
    assert (moved[:, t] > 1e-3).all()
    return {int(np.flatnonzero(of_one)[0]) for of_one in moved}


@pytest.mark.parametrize("t", (70, 79, 80, 128))
@pytest.mark.parametrize(
    "overrides",
    (
        {"projections": False},
        {"kernel_basis": "taps"},
        {"mixer": "attention"},
        {"memory": "aligned"},
        {"memory": "polar"},
        {"memory": "polar", "memory_piece": 10},
        {"memory": "aligned", "mixer": "attention"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "memory": "polar", "mixer": "attention"},
    ),
    ids=str,
)
def test_every_mixer_and_memory_is_causal_to_the_last_bit(overrides, t):
    """79 is the last byte of a piece, 80 the first of the next."""
    assert first_to_move(model_config(**overrides), (no_filter(SEQ_LEN),), t) == {t}


@pytest.mark.parametrize("overrides", ({"kernel_basis": "taps"}, {"memory": "aligned"}, {"memory": "polar"}), ids=str)
def test_no_cutoff_changes_that(overrides):
    assert first_to_move(model_config(**overrides, n_layers=1), LOW_PASSES, 79) == {79}


@pytest.mark.parametrize("kind", ("aligned", "polar"))
def test_a_memory_read_one_byte_early_is_caught(monkeypatch, kind):
    monkeypatch.setattr(spectral_memory, "pieces_done", lambda length, piece: (jnp.arange(length) + 2) // piece)
    # Of this config nothing else is compiled, so that no other test gets the wrong memory.
    config = model_config(memory=kind, n_layers=1, kernel_len=39)
    assert first_to_move(config, (no_filter(SEQ_LEN),), 79) == {78}


@pytest.mark.parametrize(
    "mixer,memory_kind", (("attention", "none"), ("convolution", "aligned"), ("attention", "polar"))
)
def test_no_logit_has_a_gradient_at_a_later_byte(mixer, memory_kind):
    (gradient,) = compiled_gradients(model_config(mixer=mixer, memory=memory_kind), no_filter(SEQ_LEN))(90)
    assert (gradient[91:] == 0).all() and gradient[90] > 0


def test_negative_control_the_signal_method_fails():
    logits = compiled(model_config(n_layers=1), *(LowPass(cutoff, BINS, "signal") for cutoff in (10, 40)))
    tokens = random_bytes()
    changed = tokens.copy()
    changed[:, 70:] ^= 1
    moved = np.abs(logits(changed) - logits(tokens))
    assert (moved[:, :, :70].max(axis=(1, 2, 3, 4)) > 0.02 * moved.max(axis=(1, 2, 3, 4))).all()


@pytest.fixture(scope="module")
def blocks():
    """A block under each band limit: what it makes of x, and the gradient by x of one of its outputs."""
    graph, params = graph_and_params(model_config())
    layer = jax.tree.map(lambda leaf: leaf[0], params["blocks"])

    @jax.jit
    def all_of(x, one_hot):
        block: ResidualBlock = nnx.merge(graph, {**params, "blocks": layer}).blocks
        found = [jax.vjp(lambda x, low_pass=low_pass: block(x, low_pass, None), x) for low_pass in LOW_PASSES]
        return [y for y, _ in found], [transpose(one_hot)[0] for _, transpose in found]

    return lambda x, one_hot: [np.stack(arrays) for arrays in all_of(x, one_hot)]


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, SEQ_LEN, 16)).astype(np.float32)


def test_a_block_lets_no_nan_into_earlier_toeplitz_blocks(blocks):
    """Kernels of 40 taps make Toeplitz blocks of 64; a NaN at 130 may spoil 128 and 129, nothing before."""
    x = noise()
    x[0, 130] = np.nan
    y, _ = blocks(x, np.zeros_like(x))
    assert np.isfinite(y[:, 0, :128]).all()
    assert np.isnan(y[:, 0, 130]).all()


def test_a_block_has_no_gradient_from_the_future(blocks):
    x = noise()
    for t in (0, 63, 64, 100):
        one_hot = np.zeros_like(x)
        one_hot[0, t] = 1
        gradient = np.abs(blocks(x, one_hot)[1])[:, 0]
        assert (gradient[:, t + 1 :] == 0).all()
        assert (gradient[:, t].max(axis=1) > 0).all()


def test_the_loss_of_one_position_has_no_gradient_at_later_bytes():
    """The whole model at every cutoff, by the gradient with respect to the embedded input bytes."""
    gradient = compiled_gradients(model_config(n_layers=1), *LOW_PASSES)(90)
    assert (gradient[:, 91:] == 0).all()
    assert (gradient[:, 90] > 0).all()


def test_the_model_lets_no_nan_into_earlier_toeplitz_blocks():
    """One byte, at 130, has an embedding of NaN; logits before its block, which begins at 128, stay finite."""
    logits = compiled(model_config(), *LOW_PASSES, LowPass(20, BINS, "minimum_phase", 8))
    tokens = np.zeros((2, SEQ_LEN), np.uint8)
    tokens[:, 130] = 255
    _, params = graph_and_params(model_config())
    embedding = params["embed"]["embedding"].copy()
    embedding[255] = np.nan
    finite = np.isfinite(logits(tokens, {**params, "embed": {"embedding": embedding}})).all(axis=(1, 3, 4))
    assert finite[:, :128].all() and not finite[:, 130:].any()
