"""Nothing sees the future: every mixer, memory, cutoff and filter method, block and model, in every way we can ask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.config import ModelConfig
from fftlm_jax.model import build, init_params, memory
from fftlm_jax.model.blocks import Block
from fftlm_jax.spectral import LowPass, no_filter

SEQ_LEN, BINS = 160, 81
CUTOFFS = (10, 20, 40, 80, BINS)


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


def logits_function(config: ModelConfig, low_pass: LowPass):
    graph, _ = build(config)
    params = init_params(config, 0)

    @jax.jit
    def logits(bytes_BT):
        model = nnx.merge(graph, params)
        return model.head.chunk(model(bytes_BT, low_pass))

    return logits


def random_bytes(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, SEQ_LEN)).astype(np.uint8)


@pytest.mark.parametrize("conv_method,tolerance", (("toeplitz", 0.0), ("fft", 3e-6)))
@pytest.mark.parametrize("method,cutoff", [("cosine", c) for c in CUTOFFS] + [("minimum_phase", 20)])
def test_changed_bytes_move_no_earlier_logits(method, cutoff, conv_method, tolerance):
    """Everything from t on is replaced, t inside a Toeplitz block (70) and at its border (128)."""
    logits = logits_function(model_config(conv_method=conv_method), LowPass(cutoff, BINS, method, 8))
    tokens, other = random_bytes(), random_bytes(1)
    reference = np.asarray(logits(tokens))
    for t in (70, 128):
        changed = np.concatenate([tokens[:, :t], other[:, t:]], axis=1)
        moved = np.abs(np.asarray(logits(changed)) - reference)
        assert moved[:, :t].max() <= tolerance * np.abs(reference).max()
        assert moved[:, t].max() > 1e-3


def first_to_move(config: ModelConfig, low_pass: LowPass, t: int) -> int:
    """First position whose logits change when all bytes from t on are replaced; asserts that t itself is moved."""
    logits = logits_function(config, low_pass)
    tokens, other = random_bytes(), random_bytes(1)
    changed = np.concatenate([tokens[:, :t], other[:, t:]], axis=1)
    moved = np.abs(np.asarray(logits(changed)) - np.asarray(logits(tokens))).max(axis=(0, 2, 3))
    assert moved[t] > 1e-3
    return int(np.flatnonzero(moved)[0])


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
    ),
    ids=str,
)
def test_every_mixer_and_memory_is_causal_to_the_last_bit(overrides, t):
    """79 is the last byte of a piece, 80 the first of the next."""
    assert first_to_move(model_config(**overrides), no_filter(SEQ_LEN), t) == t


@pytest.mark.parametrize("overrides", ({"kernel_basis": "taps"}, {"memory": "aligned"}, {"memory": "polar"}), ids=str)
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_no_cutoff_changes_that(cutoff, overrides):
    assert first_to_move(model_config(**overrides), LowPass(cutoff, BINS), 79) == 79


@pytest.mark.parametrize("kind", ("aligned", "polar"))
def test_a_memory_read_one_byte_early_is_caught(monkeypatch, kind):
    monkeypatch.setattr(memory, "pieces_done", lambda length, piece: (jnp.arange(length) + 2) // piece)
    assert first_to_move(model_config(memory=kind), no_filter(SEQ_LEN), 79) == 78


@pytest.mark.parametrize(
    "mixer,memory_kind", (("attention", "none"), ("convolution", "aligned"), ("attention", "polar"))
)
def test_no_logit_has_a_gradient_at_a_later_byte(mixer, memory_kind):
    config = model_config(mixer=mixer, memory=memory_kind)
    graph, _ = build(config)
    params = init_params(config, 0)
    tokens = jnp.asarray(np.arange(SEQ_LEN)[None] % 256)

    def logits(embedding):
        model = nnx.merge(graph, {**params, "embed": {"embedding": embedding}})
        return model.head.chunk(model(tokens, no_filter(SEQ_LEN)))[0, 90].sum()

    embedding = params["embed"]["embedding"]
    gradient = np.abs(jax.jit(jax.grad(logits))(embedding)).max(axis=1)
    assert (gradient[91:] == 0).all() and gradient[90] > 0


@pytest.mark.parametrize("cutoff", (10, 40))
def test_negative_control_the_signal_method_fails(cutoff):
    logits = logits_function(model_config(), LowPass(cutoff, BINS, "signal"))
    tokens = random_bytes()
    changed = tokens.copy()
    changed[:, 70:] ^= 1
    moved = np.abs(np.asarray(logits(changed)) - np.asarray(logits(tokens)))
    assert moved[:, :70].max() > 0.05 * moved.max()


def block_function(low_pass: LowPass):
    block = Block(model_config(), nnx.Rngs(0))
    return jax.jit(lambda x: block(x, low_pass, None))


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_a_block_lets_no_nan_into_earlier_toeplitz_blocks(cutoff):
    """Kernels of 40 taps make Toeplitz blocks of 64; a NaN at 130 may spoil 128 and 129, nothing before."""
    x = jax.random.normal(jax.random.key(0), (1, SEQ_LEN, 16)).at[0, 130].set(jnp.nan)
    y = np.asarray(block_function(LowPass(cutoff, BINS))(x))
    assert np.isfinite(y[0, :128]).all()
    assert np.isnan(y[0, 130]).all()


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_a_block_has_no_gradient_from_the_future(cutoff):
    block = block_function(LowPass(cutoff, BINS))
    x = jax.random.normal(jax.random.key(0), (1, SEQ_LEN, 16))
    gradient_of = jax.jit(lambda x, one_hot: jax.vjp(block, x)[1](one_hot)[0])
    for t in (0, 63, 64, 100):
        gradient = np.abs(gradient_of(x, jnp.zeros_like(x).at[0, t].set(1.0)))[0]
        assert (gradient[t + 1 :] == 0).all()
        assert gradient[t].max() > 0


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_the_loss_of_one_position_has_no_gradient_at_later_bytes(cutoff):
    """The whole model, by the gradient with respect to the embedded input bytes."""
    config = model_config()
    graph, _ = build(config)
    params = init_params(config, 0)
    tokens = jnp.asarray(np.arange(SEQ_LEN)[None] % 256)  # Every position has an embedding row of its own.

    def loss(embedding):
        model = nnx.merge(graph, {**params, "embed": {"embedding": embedding}})
        return model.head.chunk(model(tokens, LowPass(cutoff, BINS)))[0, 90].sum()

    gradient = np.abs(jax.jit(jax.grad(loss))(params["embed"]["embedding"])).max(axis=1)
    assert (gradient[91:] == 0).all()
    assert gradient[90] > 0


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_the_model_lets_no_nan_into_earlier_toeplitz_blocks(cutoff):
    """One byte, at 130, has an embedding of NaN; logits before its block, which begins at 128, stay finite."""
    config = model_config()
    graph, _ = build(config)
    params = init_params(config, 0)
    embedding = params["embed"]["embedding"].at[255].set(jnp.nan)
    tokens = jnp.zeros((1, SEQ_LEN), jnp.int32).at[0, 130].set(255)

    @jax.jit
    def logits(embedding):
        model = nnx.merge(graph, {**params, "embed": {"embedding": embedding}})
        return model.head.chunk(model(tokens, LowPass(cutoff, BINS)))

    finite = np.isfinite(np.asarray(logits(embedding))).all(axis=(0, 2, 3))
    assert finite[:128].all() and not finite[130:].any()
