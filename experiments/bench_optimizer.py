"""Suite `optimizer` of `experiments.bench`: what the parts of the optimizer cost."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from configs import small
from experiments.bench_step import training_step
from experiments.interleaved import Row, compare
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config
from fftlm_jax.model import init_params
from fftlm_jax.optim import scale_by_muon
from fftlm_jax.training.optimizer import build_optimizer_of


def bench_optimizer(rounds: int) -> list[Row]:
    """What Muon costs: alpha, grouping same-shape matrices, and a whole training step of 32,768 bytes."""
    params = init_params(_small_config().model, 0)
    gradients = jax.tree.map(lambda p: 1e-3 * jnp.cos(100 * p), params)
    updates = {
        name: optimizer_update(_muon_config(**{"optim.spectral_lr": alpha}), params, gradients)
        for name, alpha in (("alpha 0", 0.0), ("alpha 0.1", 0.1))
    }
    low = {"optim.spectral_lr": 0.0, "optim.polar_dtype": "bfloat16"}
    updates["alpha 0, bfloat16"] = optimizer_update(_muon_config(**low), params, gradients)
    adamw = {"adamw": optimizer_update(_small_config(), params, gradients)}
    leaves = {f"w{i}": jax.random.normal(jax.random.key(i), (128, 128)) for i in range(36)}
    polars = {
        "optax, per leaf": optax.contrib.scale_by_muon(weight_dimension_numbers=_all_matrices(leaves)),
        "grouped": scale_by_muon(method="ns5", style="optax", shape="none", diagnostics=False),
    }
    grouped = {name: _update_of(tx, leaves, leaves) for name, tx in polars.items()}
    bytes_32k = {"train.batch_size": 128}
    steps = {
        f"{name}, {dtype}": training_step(make(**bytes_32k, **{"model.dtype": dtype}))
        for dtype in ("float32", "bfloat16")
        for name, make in (("adamw", _small_config), ("muon", _muon_config))
    }
    return [
        compare("optimizer update of configs/small.py", {**updates, **adamw}, rounds),
        compare("Muon direction of 36 matrices of 128 x 128", grouped, rounds),
        compare("training step of configs/small.py, 32,768 bytes", steps, rounds),
    ]


def _small_config(**overrides: Any) -> Config:
    values = small.get_config()
    values.update_from_flattened_dict({"model.dtype": "float32", **overrides})
    return read_config(values)


def _muon_config(**overrides: Any) -> Config:
    return _small_config(**{"optim.name": "muon", "lr.base": 0.02, **overrides})


def _all_matrices(leaves: dict[str, jax.Array]) -> dict[str, optax.contrib.MuonDimensionNumbers]:
    return {name: optax.contrib.MuonDimensionNumbers((0,), (1,)) for name in leaves}


def optimizer_update(config: Config, params: Any, gradients: Any) -> Callable[[], Any]:
    """A function that applies the optimizer of a config to fixed gradients, one step further at every call."""
    return _update_of(build_optimizer_of(config), params, gradients)


def _update_of(tx: optax.GradientTransformation, params: Any, gradients: Any) -> Callable[[], Any]:
    state = tx.init(params)
    update = jax.jit(tx.update)

    def one_update() -> Any:
        nonlocal state
        updates, state = update(gradients, state, params)
        return updates

    return one_update
