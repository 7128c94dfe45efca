"""The count of FLOPs by hand, and the devices whose peak is known."""

import jax
import jax.numpy as jnp
import pytest

from fftlm_jax.model import build, parameters
from fftlm_jax.model.parameters import flops_per_byte, peak_flops
from tests.tiny import tiny

# Tiny's blocks: w_in, w_gate, w_out 16 x 16 and a feed-forward layer 16 -> 32 -> 16, twice; 12 taps; 4 bytes a chunk.
MATRICES = 2 * (3 * 16 * 16 + 2 * 16 * 32)
HEAD = 16 * 256


@pytest.mark.parametrize(
    "overrides,expected",
    (
        ({"objective__name": "next_byte"}, 6 * (MATRICES + 2 * 16 * 12 + HEAD)),
        ({"objective__name": "chunk"}, 6 * (MATRICES + 2 * 16 * 12 + 2 * HEAD)),
        ({"objective__positions": "last"}, 6 * (MATRICES + 2 * 16 * 12 + HEAD * 5 / 32)),
        ({"model__kernel_len": 100}, 6 * (MATRICES + 2 * 16 * 32 + 2 * HEAD)),
        (
            {"model__mixer": "attention", "curriculum__rule": "none"},
            6 * (2 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 16 * 32 + 2 * HEAD),
        ),
        (
            {"objective__name": "chunk_head", "objective__backbone": "frozen", "init__checkpoint": "x"},
            2 * (MATRICES + 2 * 16 * 12) + 6 * 2 * HEAD,
        ),
    ),
)
def test_flops_per_byte(overrides, expected):
    config = tiny(model__n_layers=2, **overrides)
    assert flops_per_byte(config, build(config.model)[1]) == pytest.approx(expected)


def test_it_is_near_what_the_compiler_counts():
    """Forward and backward of one layer, where products are nearly all there is: within a quarter of XLA's count."""
    from fftlm_jax.model import init_params, score
    from fftlm_jax.model.language_model import low_pass_at

    config = tiny(model__d_model=128, model__n_layers=1, model__conv_method="direct", objective__name="next_byte")
    graph, _ = build(config.model)
    params, windows = init_params(config.model, 0), jnp.zeros((8, 36), jnp.uint8)

    def loss(params):
        scores = score(graph, params, windows, low_pass_at(config, 17), chunk=4, with_chunk=False)
        return jnp.mean(scores.next_byte_BT)

    counted = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(8 * 32 * flops_per_byte(config, params), rel=0.25)


@pytest.mark.parametrize(
    "kind,peak",
    (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("AMD EPYC", None),
    ),
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak


def test_utilisation_counts_every_device(monkeypatch):
    config = tiny()
    params = {"blocks": {"mlp": {"w_up": {"kernel": jnp.zeros((2, 16, 32))}}}}
    assert parameters.utilisation(config, params, 1e6) is None, "a CPU has no known peak"
    monkeypatch.setattr(parameters, "peak_flops", lambda kind: 1e12)
    assert parameters.utilisation(config, params, 1e6) == pytest.approx(flops_per_byte(config, params) * 1e-6)
