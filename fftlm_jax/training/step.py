"""The training step: what language modelling and fine-tuning do with a batch, and the step of language modelling.

A pure function of (state, windows, events). The cutoff is static and an explicit argument of the builder; everything
that changes every step (data, the learning rate's events) is traced.

A step whose loss, gradient or update is not finite changes nothing and sets `halted`, after which later steps change
nothing either: the state was donated, so there is no going back, and the host, which lags one step behind, may already
have sent the next. With `train.skip_nonfinite`, as many steps in a row are passed over first: to the optimizer their
gradient is 0, so that schedules and events go on, and no weight moves.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from fftlm_jax.checkpoints.contents import TrainState
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Answer
from fftlm_jax.model import score
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.layers import products_at
from fftlm_jax.model.loss import objective_loss
from fftlm_jax.optim import RadialStats, learning_rate_in_force, radial_statistics
from fftlm_jax.parallel import averaged_over_devices, constrain, replicated
from fftlm_jax.runtime.jax_settings import random_key
from fftlm_jax.spectral import LowPass


class StepMetrics(NamedTuple):
    """Numbers of one step, in nats where they are losses. `grad_norm` is taken before clipping.

    `learning_rate` is the one that the step used, or would have used had it been finite. `radial` holds, by path, the
    alignment of the gradients with the matrices of Muon, per layer; it is empty for AdamW. `spectrum_update_K` holds
    the mean squares, over layers and heads, of the updates of each cosine coefficient; None where none is trained.
    """

    loss: jax.Array
    next_byte_loss: jax.Array
    chunk_loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    finite: jax.Array
    halted: jax.Array
    radial: dict[str, RadialStats]
    spectrum_update_K: jax.Array | None


TrainStep = Callable[..., tuple[TrainState, StepMetrics]]


def events(answer: Answer) -> tuple[np.bool_, np.bool_, np.float32]:
    """(restart, pulse, reduce_by) as NumPy scalars: Python scalars are weakly typed and would compile a second step."""
    return np.bool_(answer.restart), np.bool_(answer.pulse), np.float32(answer.reduce_by)


def trained(config: Config, params: Params) -> Params:
    """The part of the weights that is trained: all of them, or the head alone."""
    return {"head": params["head"]} if config.objective.is_frozen else params


def averaging(decay: float) -> optax.GradientTransformation | None:
    """The average of the weights over steps, as optax computes it (without bias in the first steps); None for none."""
    return optax.ema(decay) if decay else None


def new_state(config: Config, params: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step of language modelling."""
    return fresh_state(params, tx.init(trained(config, params)), averaging(config.optim.ema_decay))


def fresh_state(params: Params, opt_state: optax.OptState, average: optax.GradientTransformation | None) -> TrainState:
    """The state before the first step."""
    return TrainState(
        params=params,
        opt_state=opt_state,
        ema=average.init(params) if average else None,
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        halted=jnp.zeros((), bool),
    )


def _spectrum_update(updates: Params) -> jax.Array | None:
    spectrum = updates.get("blocks", {}).get("mixer", {}).get("spectrum")
    return None if spectrum is None else jnp.mean(jnp.square(spectrum), axis=(0, 1))


def _kept(
    state: TrainState, advanced: TrainState, sound: jax.Array, sane_update: jax.Array, limit: int
) -> tuple[TrainState, jax.Array]:
    """The state after a step, and whether its update was made.

    Args:
        state, advanced: before the step, and as its update would leave it.
        sound: whether loss and gradient are finite.
        sane_update: whether the update is.
        limit: steps in a row that may be passed over.
    """
    committed = sound & sane_update & ~state.halted
    passed = jnp.zeros((), bool)
    kept = jax.tree.map(lambda new, old: jnp.where(committed, new, old), advanced, state)
    if limit:
        passed = ~sound & sane_update & ~state.halted & (state.skipped < limit)
        over = state._replace(opt_state=advanced.opt_state, step=advanced.step, skipped=state.skipped + 1)
        kept = jax.tree.map(lambda new, old: jnp.where(passed, new, old), over, kept)
    return kept._replace(halted=~(committed | passed)), committed


class Update(NamedTuple):
    """What one update was, besides the state that it left. `loss` and `extra` are means over the micro-batches."""

    loss: jax.Array
    extra: tuple[jax.Array, ...]
    grad_norm: jax.Array
    updates: Params
    opt_state: optax.OptState  # As the update leaves it, whether or not it was kept.
    finite: jax.Array


def make_update(
    loss_of: Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]],
    tx: optax.GradientTransformationExtraArgs,
    *,
    extras: int = 0,
    learned_of: Callable[[Params], Params] = lambda params: params,
    skip_nonfinite: int = 0,
    precision: str = "default",
    average: optax.GradientTransformation | None = None,
    shardings: TrainState | None = None,
    sums_once: bool = False,
) -> Callable[..., tuple[TrainState, Update]]:
    """Builds the arithmetic of a training step on any loss: language modelling and fine-tuning share it.

    Args:
        loss_of: `loss_of(learned, params, fixed, micro_batch, key) -> (loss, extra scalars)`.
        tx: the optimizer.
        extras: how many extra scalars the loss gives.
        learned_of: the part of the parameters that is trained.
        skip_nonfinite: steps in a row that may be passed over.
        precision: of the products of the loss and its gradient, see `model.precision`.
        average: of the weights over steps, or None.
        shardings: of the state on a mesh, which must be in force where the update is traced.
        sums_once: on a mesh whose devices all hold the whole parameters: every device works on its own rows, and
            gradients are summed over devices once a step. It needs a loss that is a mean over the rows of its batch,
            and no keys, of which every device would draw the same for its own rows.

    Returns:
        `update(state, fixed, batch, keys, **events) -> (state, Update)`, to be jitted. The leaves of `batch` and `keys`
        (or None) have a leading axis of micro-batches; `events` go to the optimizer.
    """

    def laid_out(loss_and_grads: tuple) -> tuple:
        """Gradients sharded as their parameters are, so that no device ever holds them whole."""
        if shardings is None or sums_once:
            return loss_and_grads
        loss, grads = loss_and_grads
        return loss, constrain(grads, learned_of(shardings.params))

    def update(
        state: TrainState, fixed: Any, batch: Any, keys: jax.Array | None, **events: Any
    ) -> tuple[TrainState, Update]:
        accum_steps = jax.tree.leaves(batch)[0].shape[0]
        learned = learned_of(state.params)

        def mean_over_micro_batches(batch_and_keys: tuple, learned: Params, params: Params, fixed: Any) -> tuple:
            def micro_step(total: tuple, inputs: tuple) -> tuple[tuple, None]:
                micro_batch, key = inputs
                with products_at(precision):  # Around the backward pass too, whose products it also traces.
                    gradient_of = jax.value_and_grad(loss_of, has_aux=True)
                    value_and_grads = gradient_of(learned, params, fixed, micro_batch, key)
                return laid_out(jax.tree.map(jnp.add, total, value_and_grads)), None

            nothing = (jnp.zeros(()),) * extras
            zeros = laid_out(((jnp.zeros(()), nothing), jax.tree.map(jnp.zeros_like, learned)))
            if accum_steps == 1:
                totals, _ = micro_step(zeros, jax.tree.map(lambda x: x[0], batch_and_keys))
            else:
                totals, _ = jax.lax.scan(micro_step, zeros, batch_and_keys)
            return jax.tree.map(lambda x: x / accum_steps, totals)

        mean = mean_over_micro_batches
        if sums_once:
            mean = functools.partial(averaged_over_devices, mean_over_micro_batches)
        (loss, extra), grads = mean((batch, keys), learned, state.params, fixed)

        grad_norm = optax.tree.norm(grads)
        sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if skip_nonfinite:
            grads = jax.tree.map(lambda g: jnp.where(sound, g, 0), grads)
        with jax.named_scope("optimizer"):  # By this name a plan tells its collectives from those of the model.
            updates, opt_state = tx.update(grads, state.opt_state, learned, **events)
        sane_update = jnp.isfinite(optax.tree.norm(updates))
        params = {**state.params, **optax.apply_updates(learned, updates)}
        ema = average.update(params, state.ema)[1] if average else None
        advanced = TrainState(params, opt_state, ema, state.step + 1, jnp.zeros_like(state.skipped), state.halted)
        kept, committed = _kept(state, advanced, sound, sane_update, skip_nonfinite)
        return kept, Update(loss, extra, grad_norm, updates, opt_state, committed)

    return update


def _micro_loss(config: Config, graph: nnx.GraphDef, low_pass: LowPass) -> Callable[..., tuple[jax.Array, tuple]]:
    """The loss of a micro-batch of windows, as `make_update` takes it; its extras are the two parts of the loss."""
    objective = config.objective

    def loss(
        learned: Params, params: Params, fixed: None, windows_BW: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, tuple]:
        scores = score(
            graph,
            {**params, **learned},
            windows_BW,
            low_pass,
            chunk=config.model.chunk,
            with_chunk=objective.has_chunks,
            last_only=objective.is_last_only,
            dropout_key=key,
        )
        return objective_loss(config, scores)

    return loss


def make_train_step(
    config: Config,
    graph: nnx.GraphDef,
    tx: optax.GradientTransformationExtraArgs,
    low_pass: LowPass,
    shardings: TrainState | None = None,
) -> TrainStep:
    """Builds the jitted step for one band limit.

    Args:
        config, graph, tx: of the run.
        low_pass: the band limit.
        shardings: of the state on a mesh of several devices, which must be in force where the step is traced.

    Returns:
        `step(state, windows, restart, pulse, reduce_by) -> (state, metrics)`, donating `state`. `windows` is uint8
        [accum_steps, batch_size, seq_len + chunk]; the last three are the scalars of `events`.
    """
    update = make_update(
        _micro_loss(config, graph, low_pass),
        tx,
        extras=2,
        learned_of=lambda params: trained(config, params),
        skip_nonfinite=config.train.skip_nonfinite,
        precision=config.model.precision,
        average=averaging(config.optim.ema_decay),
        shardings=shardings,
        sums_once=shardings is not None and _mesh_of(shardings).shape["fsdp"] == 1 and not config.model.dropout,
    )
    dropout_key = random_key(config.seed + 1) if config.model.dropout else None

    def train_step(
        state: TrainState, windows_ABW: jax.Array, restart: jax.Array, pulse: jax.Array, reduce_by: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        keys = None
        if dropout_key is not None:
            keys = jax.random.split(jax.random.fold_in(dropout_key, state.step), windows_ABW.shape[0])
        kept, done = update(state, None, windows_ABW, keys, restart=restart, pulse=pulse, reduce_by=reduce_by)
        return kept, StepMetrics(
            done.loss,
            *done.extra,
            done.grad_norm,
            learning_rate_in_force(done.opt_state),
            done.finite,
            kept.halted,
            radial_statistics(done.opt_state),
            _spectrum_update(done.updates),
        )

    if shardings is None:
        return jax.jit(train_step, donate_argnums=0)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated(_mesh_of(shardings))))


def _mesh_of(shardings: TrainState) -> Mesh:
    return shardings.step.mesh
