"""Weights as lively as those of a trained model, drawn by NumPy: nothing is compiled for them."""

import functools

import jax
import numpy as np
from flax import nnx

from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params


@functools.cache
def graph_and_params(config) -> tuple[nnx.GraphDef, Params]:
    graph, shapes = build(config)
    rng = np.random.default_rng(0)

    def weights(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        if name in ("scale", "gain", "rho", "theta"):
            return 1 + np.float32(0.3) * noise
        if name == "embedding":
            return noise
        return noise * np.float32(leaf.shape[-1 if name in ("spectrum", "taps") else -2] ** -0.5)

    return graph, jax.tree.map_with_path(weights, shapes)
