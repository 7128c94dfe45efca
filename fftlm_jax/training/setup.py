"""Builds the parts of a run: its config and corpus, optimizer, curriculum, first state and compiler."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from fftlm_jax.config import Config, read_config, rule_in_force, to_dict
from fftlm_jax.curriculum import Answer, Controller, Rule, resolve_ladder, starting_cutoff
from fftlm_jax.cutoff import cutoff_in_bins, freq_bins
from fftlm_jax.data import BatchStages, Corpus, load_corpus
from fftlm_jax.model import build, init_params
from fftlm_jax.optim import (
    build_optimizer,
    scale_by_sawtooth,
    scale_by_scheduled_learning_rate,
    stage_cooldown_schedule,
    stages_in_steps,
)
from fftlm_jax.parallel import distribute, make_mesh, on_stack, rows, state_shardings, within
from fftlm_jax.spectral import LowPass, mask_spectrum
from fftlm_jax.training.compiler import StepCompiler, StepVariant
from fftlm_jax.training.step import TrainState, events, make_train_step, new_state
from fftlm_jax.training.warm_start import (
    ARCHITECTURE,
    LOW_PASS,
    coefficients_in_use,
    load_weights,
    require_held,
    source_config,
)


def config_of(values: Mapping[str, Any], begun: Mapping[str, Any] | None = None) -> Config:
    """Validates a config. With `init.checkpoint`, the architecture is that of the run it names.

    So is, under a frozen backbone and in fine-tuning, the method of its cutoff: another would change what its kernels
    compute.

    Args:
        values: config with every key.
        begun: the config of the run that is resumed, if any: it took its architecture over when it began, and the run
            it came from need not exist any more.
    """
    config = read_config(values)
    if not config.init.checkpoint:
        return config
    merged = to_dict(config)
    source = source_config(config.init.checkpoint) if begun is None else begun
    keeps_cutoff = config.objective.is_frozen or config.task == "raft"
    inherited = {"model": ARCHITECTURE, "curriculum": LOW_PASS if keeps_cutoff else ()}
    for section, names in inherited.items():
        given = source.get(section)
        given = given if isinstance(given, Mapping) else {}
        merged[section].update({name: given[name] for name in names if name in given})
    merged_config = read_config(merged)
    if begun is None:
        require_held(config.init.checkpoint, merged_config.model)
    return merged_config


def load_run_corpus(config: Config) -> Corpus:
    """The corpus of a config, checked to hold at least one window on either side."""
    data, model = config.data, config.model
    return load_corpus(data.source, data.path, data.held_out, window=model.seq_len + model.chunk)


def build_mesh(config: Config) -> Mesh | None:
    """The run's devices; None for a single one."""
    return make_mesh(config.mesh.data, config.mesh.fsdp, config.train.batch_size)


def build_optimizer_of(config: Config, mesh: Mesh | None = None) -> optax.GradientTransformationExtraArgs:
    """The optimizer with the run's own learning rate."""
    stages = config.train.batch_stages
    return build_optimizer(config.optim, _learning_rate(config), config.total_steps, stages, on_stack(mesh))


def _learning_rate(config: Config) -> optax.GradientTransformationExtraArgs:
    lr, train = config.lr, config.train
    if lr.schedule == "sawtooth":
        return scale_by_sawtooth(stages_in_steps(lr.stages, train.steps_per_epoch, train.epochs), lr.base)
    multiplier = stage_cooldown_schedule(config.total_steps, lr.multipliers, cooldown_fraction=lr.cooldown)
    return scale_by_scheduled_learning_rate(lambda count: lr.base * multiplier(count))


def build_controller(config: Config) -> Controller:
    """The controller at the config's initial cutoff."""
    c, seq_len = config.curriculum, config.model.seq_len
    bins = freq_bins(seq_len)
    name = rule_in_force(c, config.objective)
    rule = Rule(
        name=name,
        ladder=resolve_ladder(("full",) if name == "none" else c.ladder, seq_len),
        freq_bins=bins,
        check_every=config.train.steps_per_epoch if c.check_every == "epoch" else c.check_every,
        steps_per_epoch=config.train.steps_per_epoch,
        min_epoch=c.min_epoch,
        window=c.window,
        threshold=c.threshold,
        schedule=c.schedule,
        spike_steps=config.lr.spike_steps if config.lr.factor == "adaptive" else 0,
        confidence=c.confidence if c.test == "confidence" else None,
    )
    return Controller(rule, initial_cutoff(config, rule))


def initial_cutoff(config: Config, rule: Rule) -> int:
    """Bins at step 0: everything without a curriculum, else `curriculum.initial`, by default the first rung."""
    if rule.name == "none":
        return rule.freq_bins
    if config.curriculum.initial != "first":
        return cutoff_in_bins(config.curriculum.initial, config.model.seq_len)
    if rule.name == "schedule":
        return cutoff_in_bins(rule.schedule[0][1], config.model.seq_len)
    return rule.ladder[0]


def low_pass_at(config: Config, cutoff: int) -> LowPass:
    """The band limit of the model at a cutoff in bins."""
    bins = freq_bins(config.model.seq_len)
    return LowPass(cutoff, bins, config.curriculum.method, config.curriculum.transition_bins)


def evaluation_low_pass(config: Config, cutoff: int) -> LowPass:
    """The band limit for evaluation and decoding.

    None is needed where masked coefficients are 0 already: one compilation then serves every cutoff.
    """
    return low_pass_at(config, freq_bins(config.model.seq_len) if _masks_parameters(config) else cutoff)


def first_state(
    config: Config,
    controller: Controller,
    tx: optax.GradientTransformationExtraArgs,
    mesh: Mesh | None = None,
) -> TrainState:
    """Initial (or `init.checkpoint`'s) weights and a fresh optimizer; sets the controller's starting cutoff.

    Cosine coefficients above the starting cutoff are set to 0: they begin to learn at their raise. Under a frozen
    backbone the cutoff stays the one that it was saved with. On a mesh, every device makes its own part.
    """
    shardings = None if mesh is None else shardings_of(abstract_state(config, tx, mesh))
    if config.init.checkpoint:
        params = init_params(config.model, config.seed)
        params, saved_cutoff = load_weights(config.init.checkpoint, params, controller.rule.freq_bins)
        if config.objective.is_frozen and saved_cutoff is not None:
            controller.cutoff = saved_cutoff
        else:
            controller.cutoff = starting_cutoff(
                max(controller.cutoff, saved_cutoff or 0),
                controller.rule.ladder,
                controller.rule.freq_bins,
                epoch=config.init.epoch if saved_cutoff is None else None,
                coefficients_in_use=coefficients_in_use(params),
                kernel_len=config.model.kernel_len,
            )
        if shardings:
            params = distribute(params, shardings.params)
    else:
        params = init_params(config.model, config.seed, shardings and shardings.params)
    if _masks_parameters(config) and not config.objective.is_frozen:
        mixer = params["blocks"]["mixer"]
        mixer["spectrum"] = mask_spectrum(mixer["spectrum"], low_pass_at(config, controller.cutoff))
    if shardings:
        return jax.jit(lambda params: new_state(config, params, tx), out_shardings=shardings)(params)
    return new_state(config, params, tx)


def _masks_parameters(config: Config) -> bool:
    """Whether the cutoff acts on parameters themselves, which are 0 above it, and not on what is made of them."""
    model = config.model
    return model.mixer == "convolution" and model.kernel_basis == "cosine" and config.curriculum.method == "cosine"


def abstract_state(config: Config, tx: optax.GradientTransformationExtraArgs, mesh: Mesh | None = None) -> TrainState:
    """Shapes and dtypes of the state, and on a mesh what lies where; nothing allocated."""
    params = build(config.model)[1]
    state = jax.eval_shape(lambda params: new_state(config, params, tx), params)
    if mesh is None:
        return state
    shardings = state_shardings(state, params, mesh, config.mesh.fsdp_min_size)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), state, shardings)


def shardings_of(state: TrainState) -> TrainState:
    """What lies where of an abstract state on a mesh."""
    return jax.tree.map(lambda s: s.sharding, state)


def batch_stages(config: Config) -> BatchStages:
    """How many micro-batches each step takes."""
    return BatchStages(config.train.accum_steps, config.train.batch_stages, config.total_steps)


def step_arguments(
    config: Config, tx: optax.GradientTransformationExtraArgs, micro_batches: int, mesh: Mesh | None = None
) -> tuple[Any, ...]:
    """Abstract arguments of a training step that accumulates so many micro-batches."""
    shape = (micro_batches, config.train.batch_size, config.model.seq_len + config.model.chunk)
    windows = jax.ShapeDtypeStruct(shape, np.uint8, sharding=windows_sharding(mesh))
    return abstract_state(config, tx, mesh), windows, *events(Answer())


def windows_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Of a step's windows [A, B, W]: every micro-batch is cut over all devices."""
    return None if mesh is None else rows(mesh, axis=1)


def build_compiler(
    config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformationExtraArgs, mesh: Mesh | None = None
) -> StepCompiler:
    """Compiles the run's steps, one per mask and number of micro-batches."""

    def lower(variant: StepVariant) -> jax.stages.Lowered:
        arguments = step_arguments(config, tx, variant.micro_batches, mesh)
        step = make_train_step(config, graph, tx, variant.low_pass, mesh and shardings_of(arguments[0]))
        with within(mesh):  # Here, since a background thread inherits no mesh.
            return step.lower(*arguments)

    on_one_cpu = mesh is None and jax.default_backend() == "cpu"
    return StepCompiler(lower, config.model.kernel_len, rehearse=on_one_cpu)
