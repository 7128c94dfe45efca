"""Benchmarks, each figure a ratio from one interleaved run: machines are shared and noisy, so no side runs alone.

    python -m experiments.bench conv            # the table behind `choose_method` in fftlm_jax/spectral/convolve.py
    python -m experiments.bench step --json=out.json

`conv`: forward and backward of a convolution between two projections, Toeplitz against FFT, over kernel lengths.
`step`: the training step of `shakespeare_cpu`, Toeplitz against FFT.
`muon`: what alpha adds to an update, grouping against optax's Muon leaf by leaf, and Muon's step against AdamW's.
`decode`: a byte of generated text by mode and by place; --workdir adds the speculative drafts of a trained run.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

from fftlm_jax import xla_flags

xla_flags.set_cpu_defaults(os.environ)

import jax  # noqa: E402 (after its flags)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from configs import shakespeare_cpu, small  # noqa: E402
from experiments.bench_decode import bench_decode  # noqa: E402
from experiments.interleaved import Row, compare  # noqa: E402
from fftlm_jax.config import Config, read_config  # noqa: E402
from fftlm_jax.curriculum import Answer  # noqa: E402
from fftlm_jax.model import build, init_params  # noqa: E402
from fftlm_jax.optim import scale_by_muon  # noqa: E402
from fftlm_jax.spectral import causal_convolve  # noqa: E402
from fftlm_jax.training import setup  # noqa: E402
from fftlm_jax.training.run_directory import environment  # noqa: E402
from fftlm_jax.training.step import events, make_train_step  # noqa: E402


def bench_conv(rounds: int) -> list[Row]:
    """Crossover of the two convolution methods, forward plus backward, behind and before a projection."""
    rows = []
    for B, T, D in ((4, 1024, 512), (16, 256, 128)):
        keys = jax.random.split(jax.random.key(0), 3)
        x, w = jax.random.normal(keys[0], (B * T, D)), jax.random.normal(keys[1], (D, D)) / D**0.5
        for K in (32, 64, 128, 192, 256, 512):
            if K > T:
                continue
            kernel = jax.random.normal(keys[2], (8, K)) / K**0.5

            def loss(x: jax.Array, kernel: jax.Array, w: jax.Array, method: str, shape: tuple) -> jax.Array:
                y = causal_convolve((x @ w).reshape(shape), kernel, method).reshape(x.shape)
                return jnp.sum(jax.nn.silu(y) @ w)

            gradient = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=(3, 4))
            sides = {
                method: lambda method=method, x=x, kernel=kernel, w=w, shape=(B, T, D): gradient(
                    x, kernel, w, method, shape
                )
                for method in ("fft", "toeplitz")
            }
            rows.append(compare(f"B={B} T={T} D={D} H=8 K={K}", sides, rounds))
    return rows


def bench_step(rounds: int) -> list[Row]:
    """The whole training step of `shakespeare_cpu` with either convolution."""
    sides = {}
    for method in ("fft", "toeplitz"):
        values = shakespeare_cpu.get_config()
        values.model.conv_method = method
        sides[method] = training_step(read_config(values))
    return [compare("training step of shakespeare_cpu", sides, rounds)]


def bench_muon(rounds: int) -> list[Row]:
    """What Muon costs: alpha, grouping same-shape matrices, and a whole training step of 32,768 bytes."""
    params = init_params(read_config(small.get_config()).model, 0)
    gradients = jax.tree.map(lambda p: 1e-3 * jnp.cos(100 * p), params)
    updates = {
        name: optimizer_update(_muon_config(**{"optim.spectral_lr": alpha}), params, gradients)
        for name, alpha in (("alpha 0", 0.0), ("alpha 0.1", 0.1))
    }
    adamw = {"adamw": optimizer_update(read_config(small.get_config()), params, gradients)}
    leaves = {f"w{i}": jax.random.normal(jax.random.key(i), (128, 128)) for i in range(36)}
    polars = {
        "optax, per leaf": optax.contrib.scale_by_muon(weight_dimension_numbers=_all_matrices(leaves)),
        "grouped": scale_by_muon(method="ns5", style="optax", shape="none", diagnostics=False),
    }
    grouped = {name: _update_of(tx, leaves, leaves) for name, tx in polars.items()}
    bytes_32k = {"train.batch_size": 128}
    steps = {
        "adamw": training_step(_small_config(**bytes_32k)),
        "muon": training_step(_muon_config(**bytes_32k)),
    }
    return [
        compare("optimizer update of configs/small.py", {**updates, **adamw}, rounds),
        compare("Muon direction of 36 matrices of 128 x 128", grouped, rounds),
        compare("training step of configs/small.py, 32,768 bytes", steps, rounds),
    ]


def _small_config(**overrides: Any) -> Config:
    values = small.get_config()
    values.update_from_flattened_dict(overrides)
    return read_config(values)


def _muon_config(**overrides: Any) -> Config:
    return _small_config(**{"optim.name": "muon", "lr.base": 0.02, **overrides})


def _all_matrices(leaves: dict[str, jax.Array]) -> dict[str, optax.contrib.MuonDimensionNumbers]:
    return {name: optax.contrib.MuonDimensionNumbers((0,), (1,)) for name in leaves}


def optimizer_update(config: Config, params: Any, gradients: Any) -> Callable[[], Any]:
    """A function that applies the optimizer of a config to fixed gradients, one step further at every call."""
    return _update_of(setup.build_optimizer_of(config), params, gradients)


def _update_of(tx: optax.GradientTransformation, params: Any, gradients: Any) -> Callable[[], Any]:
    state = tx.init(params)
    update = jax.jit(tx.update)

    def one_update() -> Any:
        nonlocal state
        updates, state = update(gradients, state, params)
        return updates

    return one_update


def training_step(config: Config) -> Callable[[], jax.Array]:
    """A function that trains one step further at every call, on random bytes, and returns the loss."""
    tx, (graph, _) = setup.build_optimizer_of(config), build(config.model)
    controller = setup.build_controller(config)
    step = make_train_step(config, graph, tx, setup.low_pass_at(config, controller.cutoff))
    shape = setup.step_arguments(config, tx, config.train.accum_steps)[1].shape
    windows = np.random.default_rng(0).integers(0, 128, shape).astype(np.uint8)
    state = setup.first_state(config, controller, tx)

    def one_step() -> jax.Array:
        nonlocal state
        state, metrics = step(state, windows, *events(Answer()))
        return metrics.loss

    return one_step


SUITES: dict[str, Callable[..., list[Row]]] = {
    "conv": bench_conv,
    "step": bench_step,
    "muon": bench_muon,
    "decode": bench_decode,
}


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds, at least 9")
    parser.add_argument("--workdir", help="of suite decode: a trained run with a chunk head")
    parser.add_argument("--json", help="also write the rows and the environment to this file")
    args = parser.parse_args(arguments)
    if args.rounds < 9:
        parser.error("--rounds: at least 9, or the median means little")
    if args.workdir and "decode" not in args.suites:
        parser.error("--workdir: only suite decode looks at a trained run; name it too or leave --workdir out")
    results = {"environment": environment(), "processor": platform.processor(), "rounds": args.rounds}
    print(json.dumps(results["environment"]))
    for suite in args.suites:
        options = {"workdir": args.workdir} if suite == "decode" else {}
        results[suite] = rows = SUITES[suite](args.rounds, **options)
        for row in rows:
            print(" | ".join(f"{name}: {value}" for name, value in row.items()))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
