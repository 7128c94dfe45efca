"""Nothing sees the future: block and whole model, at every cutoff and filter method, in every way we can ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.config import ModelConfig
from fftlm_jax.model import build, init_params
from fftlm_jax.model.blocks import Block
from fftlm_jax.spectral import LowPass, no_filter

SEQ_LEN, BINS = 160, 81
CUTOFFS = (10, 20, 40, 80, BINS)


def model_config(conv_method: str = "toeplitz", projections: bool = True) -> ModelConfig:
    return ModelConfig(
        seq_len=SEQ_LEN,
        kernel_len=40,
        d_model=16,
        n_layers=2,
        conv_heads=4,
        projections=projections,
        ffn_mult=2.0,
        chunk=4,
        conv_method=conv_method,
        dropout=0.0,
        dtype="float32",
    )


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
    logits = logits_function(model_config(conv_method), LowPass(cutoff, BINS, method, 8))
    tokens, other = random_bytes(), random_bytes(1)
    reference = np.asarray(logits(tokens))
    for t in (70, 128):
        changed = np.concatenate([tokens[:, :t], other[:, t:]], axis=1)
        moved = np.abs(np.asarray(logits(changed)) - reference)
        assert moved[:, :t].max() <= tolerance * np.abs(reference).max()
        assert moved[:, t].max() > 1e-3


def test_plain_blocks_are_causal_too():
    logits = logits_function(model_config(projections=False), no_filter(SEQ_LEN))
    tokens = random_bytes()
    changed = tokens.copy()
    changed[:, 70:] ^= 1
    np.testing.assert_array_equal(logits(tokens)[:, :70], logits(changed)[:, :70])


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
