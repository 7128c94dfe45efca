"""Builds the parts of a run, and its state at the first step or as a checkpoint holds it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from fftlm_jax.checkpoints.contents import TrainState, require_training_host
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Restored
from fftlm_jax.checkpoints.saved_run import (
    ARCHITECTURE,
    LOW_PASS,
    coefficients_in_use,
    load_weights,
    require_held,
    source_config,
)
from fftlm_jax.config.cutoff import cutoff_passing, freq_bins
from fftlm_jax.config.reading import read_config, require_same_corpus, settled, to_dict, with_types_of
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Answer, Controller, starting_cutoff
from fftlm_jax.curriculum.controller import build_rule, initial_cutoff
from fftlm_jax.data import Corpus
from fftlm_jax.data.corpus import load_run_corpus, require_apart
from fftlm_jax.evaluation.held_out_bpb import HeldOut
from fftlm_jax.model import build, init_params
from fftlm_jax.model.language_model import low_pass_at, masks_parameters
from fftlm_jax.parallel import abstract_at, distribute, make_mesh, state_shardings, within
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.runtime.jax_settings import require_devices, require_supported_settings
from fftlm_jax.spectral import mask_spectrum
from fftlm_jax.training.batches import StepWindows, windows_sharding
from fftlm_jax.training.compiler import StepCompiler, StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.progress import Progress, RunState
from fftlm_jax.training.step import events, make_train_step, new_state


def config_of(values: Mapping[str, Any], saved_config: Mapping[str, Any] | None = None) -> Config:
    """Validates a config, and the settings of JAX and devices that it would run under.

    With `init.checkpoint`, the architecture is that of the run it names.

    So is, under a frozen backbone and in fine-tuning, the method of its cutoff: another would change what its kernels
    compute.

    Args:
        values: config with every key. With a coordinator, types that are "auto" stay so, see `settled`.
        saved_config: that of the run that is resumed, if any: it took its architecture over when it began, and the run
            it came from need not exist any more.

    Raises:
        RunError: for a config or a setting that cannot be used.
    """
    require_supported_settings()
    config = read_config(values, keep_auto=True)
    if saved_config is not None:
        config = read_config(with_types_of(to_dict(config), saved_config), keep_auto=True)
    if not config.distributed.coordinator:  # Else devices are there only when all processes have joined.
        require_devices()
        config = settled(config)
    if not config.init.checkpoint:
        return config
    merged = to_dict(config)
    source = source_config(config.init.checkpoint) if saved_config is None else saved_config
    keeps_cutoff = config.objective.is_frozen or config.task == "raft"
    inherited = {"model": ARCHITECTURE, "curriculum": LOW_PASS if keeps_cutoff else ()}
    for section, names in inherited.items():
        given = source.get(section)
        given = given if isinstance(given, Mapping) else {}
        merged[section].update({name: given[name] for name in names if name in given})
    merged_config = read_config(merged, keep_auto=True)
    if saved_config is None:
        require_held(config.init.checkpoint, merged_config.model)
    return merged_config


def build_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """The run's devices, of this machine unless others are given; None for a single one."""
    return make_mesh(config.mesh.data, config.mesh.fsdp, config.train.batch_size, devices=devices)


@dataclasses.dataclass(frozen=True)
class RunParts:
    """What a run is made of. Building it reads the corpus and changes nothing on disk; training does not change it."""

    config: Config
    directory: RunDirectory
    corpus: Corpus
    mesh: Mesh | None
    windows: StepWindows
    tx: optax.GradientTransformationExtraArgs
    graph: nnx.GraphDef
    held_out: HeldOut


def build_run(config: Config, directory: RunDirectory) -> RunParts:
    """Builds the parts of a run.

    Raises:
        RunError: if the corpus cannot be read, or the mesh does not fit the devices.
    """
    require_apart(config.data.path, directory.root, "--workdir")
    corpus, mesh, (graph, _) = load_run_corpus(config), build_mesh(config), build(config.model)
    return RunParts(
        config=config,
        directory=directory,
        corpus=corpus,
        mesh=mesh,
        windows=StepWindows(config, corpus.train, mesh),
        tx=build_optimizer_of(config, mesh),
        graph=graph,
        held_out=HeldOut(config, graph, corpus.held_out, mesh),
    )


def initial_run_state(parts: RunParts) -> RunState:
    """The state of a run before its first step.

    Raises:
        CheckpointError: if `resume.mode` asks for a checkpoint.
    """
    config = parts.config
    if config.resume.mode == "must":
        raise CheckpointError(
            f"resume.mode=must: {parts.directory.root} holds no whole checkpoint; drop the option to start over."
        )
    arrays, cutoff = first_state(config, parts.tx, parts.mesh)
    return RunState(arrays, Controller(build_rule(config), cutoff), Progress(), step=0)


def restored_run_state(parts: RunParts, restored: Restored) -> RunState:
    """The state that a checkpoint holds.

    Raises:
        CheckpointError: if a field of it is missing or wrong, the corpus is another, or its cutoff would switch off
            coefficients that its weights use: a cutoff never regresses.
    """
    config, host = parts.config, restored.host
    step = parts.directory.checkpoints / str(restored.step)
    require_training_host(host, freq_bins(config.model.seq_len), step)
    require_same_corpus(host["corpus"], parts.corpus.fingerprint, config)
    controller, progress = Controller(build_rule(config), _least_cutoff(config, restored.arrays)), Progress()
    try:
        controller.load_state_dict(host["controller"])
    except ValueError as error:
        raise CheckpointError(
            f"{step}: {error}, and its weights use coefficients above it; keep the curriculum.method that they were "
            "trained under, or restore this step."
        ) from None
    progress.load_state_dict(host)
    return RunState(restored.arrays, controller, progress, restored.step)


def _least_cutoff(config: Config, arrays: TrainState) -> int:
    """The lowest cutoff in bins that passes every cosine coefficient which the weights use."""
    if config.objective.is_frozen or not masks_parameters(config):
        return 1
    used = coefficients_in_use(arrays.params)
    return cutoff_passing(used, freq_bins(config.model.seq_len), config.model.kernel_len)


def first_state(
    config: Config, tx: optax.GradientTransformationExtraArgs, mesh: Mesh | None = None
) -> tuple[TrainState, int]:
    """Initial (or `init.checkpoint`'s) weights with a fresh optimizer, and the cutoff in bins to start at.

    Cosine coefficients above that cutoff are set to 0: they begin to learn at their raise. Under a frozen backbone the
    cutoff is the one that it was saved with. On a mesh, every device makes its own part.
    """
    rule, shardings = build_rule(config), None if mesh is None else shardings_of(abstract_state(config, tx, mesh))
    cutoff = initial_cutoff(config, rule)
    if config.init.checkpoint:
        params = init_params(config.model, config.seed)
        params, saved_cutoff = load_weights(config.init.checkpoint, params, rule.freq_bins)
        if config.objective.is_frozen and saved_cutoff is not None:
            cutoff = saved_cutoff
        else:
            cutoff = starting_cutoff(
                max(cutoff, saved_cutoff or 0),
                rule.ladder,
                rule.freq_bins,
                epoch=config.init.epoch if saved_cutoff is None else None,
                coefficients_in_use=coefficients_in_use(params),
                kernel_len=config.model.kernel_len,
            )
        if shardings:
            params = distribute(params, shardings.params)
    else:
        params = init_params(config.model, config.seed, shardings and shardings.params)
    if masks_parameters(config) and not config.objective.is_frozen:
        mixer = params["blocks"]["mixer"]
        mixer["spectrum"] = mask_spectrum(mixer["spectrum"], low_pass_at(config, cutoff))
    if shardings:
        return jax.jit(lambda params: new_state(config, params, tx), out_shardings=shardings)(params), cutoff
    return new_state(config, params, tx), cutoff


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


def step_arguments(
    config: Config, tx: optax.GradientTransformationExtraArgs, micro_batches: int, mesh: Mesh | None = None
) -> tuple[Any, ...]:
    """Abstract arguments of a training step that accumulates so many micro-batches."""
    shape = (micro_batches, config.train.batch_size, config.model.seq_len + config.model.chunk)
    windows = jax.ShapeDtypeStruct(shape, np.uint8, sharding=windows_sharding(mesh))
    return abstract_state(config, tx, mesh), windows, *events(Answer())


def trace_step(
    config: Config,
    graph: nnx.GraphDef,
    tx: optax.GradientTransformationExtraArgs,
    variant: StepVariant,
    mesh: Mesh | None = None,
    device: jax.Device | None = None,
) -> jax.stages.Traced:
    """Traces the step of a variant; nothing is allocated.

    Args:
        config, graph, tx, variant: of the run.
        mesh: of several devices.
        device: where there is no mesh: the single device that the step is for, if not this machine's own.
    """
    arguments = step_arguments(config, tx, variant.micro_batches, mesh)
    step = make_train_step(config, graph, tx, variant.low_pass, mesh and shardings_of(arguments[0]))
    if device is not None:
        arguments = abstract_at(arguments, jax.sharding.SingleDeviceSharding(device))
    with within(mesh):  # Here, since a background thread inherits no mesh.
        return step.trace(*arguments)


def build_compiler(
    config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformationExtraArgs, mesh: Mesh | None = None
) -> StepCompiler:
    """Compiles the run's steps, one per mask and number of micro-batches."""

    def lower(variant: StepVariant) -> jax.stages.Lowered:
        return trace_step(config, graph, tx, variant, mesh).lower()

    on_one_cpu = mesh is None and jax.default_backend() == "cpu"
    return StepCompiler(lower, config.model.kernel_len, rehearse=on_one_cpu)
