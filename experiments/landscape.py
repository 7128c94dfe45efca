"""The training loss around the weights of a saved run, seen at a cutoff: curvature, stable learning rates, gradients.

Left out: dropout, and losses weighted by anything but the run's own objective. The optimizer is AdamW wherever its
second moment is asked for.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.lanczos import Eigenpair, top_eigenpair
from fftlm_jax.checkpoints.contents import TrainState
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Answer
from fftlm_jax.data import TrainingWindows
from fftlm_jax.model import build, score
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.loss import objective_loss
from fftlm_jax.model.parameters import label_params
from fftlm_jax.optim.leaves import states_of
from fftlm_jax.spectral import LowPass
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.step import events, make_train_step

Loss = Callable[[Params, jax.Array], jax.Array]


def batch_loss(config: Config, low_pass: LowPass) -> Loss:
    """(params, windows_BW) -> the run's objective in nats, its mean over a batch of windows."""
    graph, _ = build(config.model)

    def loss(params: Params, windows_BW: jax.Array) -> jax.Array:
        chunks = {"with_chunk": config.objective.has_chunks, "last_only": config.objective.is_last_only}
        scores = score(graph, params, windows_BW, low_pass, chunk=config.model.chunk, **chunks)
        return objective_loss(config, scores)[0]

    return loss


class Landscape:
    """A run's loss, its derivatives and its training step at one band limit, each compiled once for all seeds."""

    def __init__(self, config: Config, low_pass: LowPass) -> None:
        loss = batch_loss(config, low_pass)

        def product(params: Params, windows_BW: jax.Array, direction: Params) -> jax.Array:
            # Reverse over reverse: convolutions have gradients of their own, which forward mode cannot pass.
            slope = lambda p: optax.tree.vdot(jax.grad(loss)(p, windows_BW), direction)  # noqa: E731
            return ravel_pytree(jax.grad(slope)(params))[0]

        self.config = config
        self.loss = jax.jit(loss)
        self.gradient = jax.jit(lambda params, windows_BW: ravel_pytree(jax.grad(loss)(params, windows_BW))[0])
        self.product = jax.jit(product)
        graph, _ = build(config.model)
        self.step = make_train_step(config, graph, build_optimizer_of(config), low_pass)


def top_curvature(
    landscape: Landscape, params: Params, windows_BW: np.ndarray, scale: np.ndarray | None = None
) -> Eigenpair:
    """Top eigenpair of the Hessian H of a batch's loss, or of `S^-1/2 H S^-1/2` for a diagonal `scale` S.

    The loss does not depend on coefficients above the cutoff, so their rows of H are 0. Started from a product, Lanczos
    never leaves the free parameters.
    """
    flat, unravel = ravel_pytree(params)
    root = np.ones(flat.size) if scale is None else scale**-0.5

    def product(q: np.ndarray) -> np.ndarray:
        image = landscape.product(params, windows_BW, unravel(jnp.asarray(root * q, jnp.float32)))
        return root * np.asarray(image, np.float64)

    return top_eigenpair(product, product(np.random.default_rng(0).normal(size=flat.size)))


def adam_curvature(landscape: Landscape, state: TrainState, windows_BW: np.ndarray) -> Eigenpair:
    """The same, with S what Adam divides its step on this batch by: the curvature that limits its learning rate."""
    return top_curvature(landscape, state.params, windows_BW, adam_scale(landscape, state, windows_BW))


def adam_scale(landscape: Landscape, state: TrainState, windows_BW: np.ndarray) -> np.ndarray:
    """What Adam would divide its step on this batch by: sqrt of the bias-corrected second moment, plus eps, flat.

    The batch's own gradient enters as it does in Adam's update. It matters where the saved moment is next to nothing:
    at rare bytes, and at coefficients that have just been opened.
    """
    optim = landscape.config.optim
    (adam,) = states_of(state.opt_state, optax.ScaleByAdamState)
    gradient = np.asarray(landscape.gradient(state.params, windows_BW), np.float64)
    moment = optim.b2 * np.asarray(ravel_pytree(adam.nu)[0], np.float64) + (1 - optim.b2) * gradient**2
    return np.sqrt(moment / (1 - optim.b2 ** (int(adam.count) + 1))) + optim.eps


def limit_of_adam(top: float, b1: float) -> float:
    """Learning rate above which Adam with full batches is unstable on a quadratic of preconditioned curvature `top`.

    (2 + 2 b1) / (1 - b1) / top: the bound of gradient descent with an averaged momentum (Cohen et al. 2022, "Adaptive
    gradient methods at the edge of stability"). Noise of mini-batches lowers it.
    """
    return (2 + 2 * b1) / (1 - b1) / top if top > 0 else math.inf


def share_of(vector: np.ndarray, params: Params, group: str) -> float:
    """Part of a flat unit vector's squared length that lies in one group of parameters, such as `convolution`."""
    is_member = jax.tree.map(lambda found, leaf: jnp.full(leaf.shape, found == group), label_params(params), params)
    return float((vector[np.asarray(ravel_pytree(is_member)[0])] ** 2).sum())


def loss_changes(
    landscape: Landscape,
    state: TrainState,
    windows: TrainingWindows,
    fixed_BW: np.ndarray,
    factors: Sequence[float],
    steps: int,
) -> list[float]:
    """How the loss on a fixed batch changes over `steps` steps at each multiple of the learning rate in force (nats).

    Training goes on from `state`, moments and all, on the batches of `windows`. inf where it met a non-finite number.
    """
    train = landscape.config.train
    before = float(landscape.loss(state.params, fixed_BW))
    changes = []
    for factor in factors:
        at = jax.tree.map(jnp.copy, state)  # The step donates its state.
        for i in range(steps):
            batch = windows.batch(i, train.accum_steps, train.batch_size)
            # `reduce_by` stays in force, whichever way it goes.
            at, _ = landscape.step(at, batch, *events(Answer(reduce_by=factor if i == 0 else 1.0)))
        after = float(landscape.loss(at.params, fixed_BW))
        changes.append(math.inf if bool(at.halted) or not math.isfinite(after) else after - before)
    return changes


def largest_stable(rates: Sequence[float], changes: Sequence[float], allowed: float) -> float:
    """Largest learning rate up to which no run ends more than `allowed` nats above where it began.

    Between the last rate that holds and the first that does not, the crossing is interpolated over the rate's
    logarithm. The first or the last rate where all or none of them fail: a bound then, not a value.
    """
    for i, change in enumerate(changes):
        if change > allowed:
            if i == 0:
                return rates[0]
            low, high = changes[i - 1], change
            part = 0.0 if math.isinf(high) else (allowed - low) / (high - low)
            return rates[i - 1] * (rates[i] / rates[i - 1]) ** part
    return rates[-1]


class Cosines(NamedTuple):
    """Cosines from step to step while training goes on.

    `batches` [steps - 1]: of successive mini-batches' gradients, each at the weights it is applied to. `fixed` [steps -
    1]: of the gradient of one fixed batch before and after an update, where only the weights differ. `differences`
    [steps - 2]: of successive changes of that gradient.
    """

    batches: list[float]
    fixed: list[float]
    differences: list[float]


def gradient_cosines(
    landscape: Landscape, state: TrainState, windows: TrainingWindows, fixed_BW: np.ndarray, steps: int
) -> tuple[Cosines, TrainState]:
    """Trains on for `steps` steps at the learning rate in force, comparing gradients; also returns where that led."""
    train = landscape.config.train
    at = jax.tree.map(jnp.copy, state)
    batches, fixed = [], []
    for i in range(steps):
        batch = windows.batch(i, train.accum_steps, train.batch_size)
        batches.append(landscape.gradient(at.params, batch.reshape(-1, batch.shape[-1])))
        fixed.append(landscape.gradient(at.params, fixed_BW))
        at, _ = landscape.step(at, batch, *events(Answer()))
    batches, fixed = np.asarray(batches, np.float64), np.asarray(fixed, np.float64)
    return Cosines(*(cosines_of(rows) for rows in (batches, fixed, np.diff(fixed, axis=0)))), at


def cosines_of(rows: np.ndarray) -> list[float]:
    """The cosine of each row with the next one."""
    lengths = np.linalg.norm(rows, axis=1)
    return ((rows[1:] * rows[:-1]).sum(axis=1) / (lengths[1:] * lengths[:-1])).tolist()
