"""Blocks that are computed again in the backward pass: the same numbers from less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fftlm_jax.model import score
from fftlm_jax.model.language_model import low_pass_at
from tests.model.lively import graph_and_params
from tests.tiny import tiny


def loss_and_gradient(remat: str, **overrides):
    config = tiny(model__remat=remat, model__n_layers=2, **overrides)
    graph, params = graph_and_params(config.model)
    windows = np.random.default_rng(0).integers(0, 256, (8, 36)).astype(np.uint8)
    key = jax.random.key(0) if config.model.dropout else None

    def loss(params):
        low_pass = low_pass_at(config, 17)
        scores = score(graph, params, windows, low_pass, chunk=4, with_chunk=False, dropout_key=key)
        return jnp.mean(scores.next_byte_BT)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    return compiled(params), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("dropout", (0.0, 0.3))
def test_loss_and_gradient_are_equal_and_memory_is_less(dropout):
    (loss, gradient), memory = loss_and_gradient("none", model__dropout=dropout)
    (again, regained), less = loss_and_gradient("blocks", model__dropout=dropout)
    assert float(loss) == pytest.approx(float(again), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, regained)
    assert less < 0.7 * memory, (less, memory)
