"""Suite `step` of `experiments.bench`: whole training steps, against PyTorch and by method."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import aligned, shakespeare_cpu
from experiments.interleaved import Row, compare, interleaved
from experiments.peers import torch_peers
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Answer
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.model import build, init_params
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.model.parameters import flops_per_byte
from fftlm_jax.runtime.platform import multiply
from fftlm_jax.training import run_parts
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.step import events, make_train_step


def bench_step(rounds: int) -> list[Row]:
    """The training steps of `aligned` (one micro-batch, full band) and of `shakespeare_cpu`."""
    cases = {"aligned": aligned, "shakespeare_cpu": shakespeare_cpu}
    rows = [_compare_steps(name, _full_band(module.get_config()), rounds) for name, module in cases.items()]
    return [*rows, _products_alone(_full_band(aligned.get_config()), rounds)]


def _full_band(values: ConfigDict) -> ConfigDict:
    """The same config as its peers know it: full band, AdamW, no accumulation."""
    values.curriculum.update(rule="none", ladder=("full",))
    values.optim.name = "adamw"
    values.train.accum_steps = 1
    return values


def _compare_steps(name: str, values: ConfigDict, rounds: int) -> Row:
    values.model.dtype = "float32"
    config = read_config(values, with_data=False)
    label = f"training step of {name}'s model under AdamW, {config.train.batch_size} x {config.model.seq_len} bytes"
    sides: dict[str, Callable[[], Any]] = dict(_torch_sides(config))
    for dtype, method in (("float32", "fft"), ("float32", "toeplitz"), ("bfloat16", "auto")):
        values.model.update(dtype=dtype, conv_method=method)
        sides[f"ours, {method}, {dtype}"] = training_step(read_config(values, with_data=False))
    return compare(label, sides, rounds)


def _torch_sides(config: Config) -> Mapping[str, Callable[[], Any]]:
    """PyTorch's steps from the same weights, on the same windows, checked to begin at the same loss.

    In float32, and in bfloat16 as its users have it: by autocast.
    """
    peers = torch_peers()
    if peers is None:
        return {}
    params, windows = init_params(config.model, config.seed), windows_of(config)[0]
    ours = float(training_step(config)())
    sides = {}
    for name, convolve in peers.METHODS.items():
        for dtype, compiled in itertools.product(("float32", "bfloat16"), (False, True)):
            step = peers.peer_training_step(config, params, windows, convolve, dtype=dtype, compiled=compiled)
            np.testing.assert_allclose(float(step()), ours, rtol=1e-4 if dtype == "float32" else 1e-2)
            sides[f"{name}, {'compiled' if compiled else 'eager'}, {dtype}"] = step
    return sides


def _products_alone(values: ConfigDict, rounds: int) -> Row:
    """What the arithmetic of a step would take at the best rate of the feed-forward layer's first product."""
    config = read_config(values, with_data=False)
    N, D = config.train.batch_size * config.model.seq_len, config.model.d_model
    x_ND = jax.random.normal(jax.random.key(0), (N, D))
    w_DE = jax.random.normal(jax.random.key(1), (D, round(D * config.model.ffn_mult)))
    sides: dict[str, Callable[[], Any]] = {}
    peers = torch_peers()
    for dtype in ("float32", "bfloat16"):
        x, w = x_ND.astype(dtype), w_DE.astype(dtype)
        sides[f"ours, {dtype}"] = functools.partial(jax.jit(multiply), x, w)
        if peers:
            sides[f"torch, {dtype}"] = peers.product_side(x_ND, w_DE, dtype)
    needed = flops_per_byte(config, init_params(config.model, config.seed)) * N
    row: Row = {"case": f"{needed / 1e9:.0f} GFLOP of a step at the best rate of a {N} x {D} x {w_DE.shape[1]} product"}
    for name, times in interleaved(sides, 4 * rounds).items():
        rate = 2 * N * w_DE.size / min(times)
        row[f"{name} GFLOP/s"], row[f"{name} ms"] = round(rate / 1e6), round(needed / rate)
    return row


def windows_of(config: Config) -> np.ndarray:
    """Random bytes, uint8 [micro-batches, B, W], the same for every side."""
    train, model = config.train, config.model
    shape = (train.accum_steps, train.batch_size, model.seq_len + model.chunk)
    return np.random.default_rng(0).integers(0, 128, shape).astype(np.uint8)


def training_step(config: Config) -> Callable[[], jax.Array]:
    """A function that trains one step further at every call, on random bytes, and returns the loss."""
    tx, (graph, _) = build_optimizer_of(config), build(config.model)
    controller = build_controller(config)
    step = make_train_step(config, graph, tx, low_pass_at(config, controller.cutoff))
    windows = windows_of(config)
    state, _ = run_parts.first_state(config, tx)

    def one_step() -> jax.Array:
        nonlocal state
        state, metrics = step(state, windows, *events(Answer()))
        return metrics.loss

    return one_step
