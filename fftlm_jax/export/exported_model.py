"""An exported model: the folder with its weights, how to load it, and its forward pass as StableHLO.

    model.safetensors   the weights by name
    config.json         the model, the band limit of its mixers, the step
    README.md           what it is, and an example that runs
    forward.stablehlo   on request, the forward pass (see `stablehlo`)

    config, params = load_exported("folder")
    logits = next_byte_logits(config, params, bytes_BT)

Shapes: B windows, T bytes of each, V = 256 byte values.

The forward pass of a model as a program of its own, which runs without this package: `jax.export` to StableHLO.

    forward = jax.export.deserialize(bytearray(program))
    logits = forward.call(tensors, bytes_BT)

Takes the tensors by name, as `model.safetensors` holds them, and any number B of windows of T = `seq_len` bytes
(uint8); returns the logits of the byte after each position, float32 [B, T, 256]. It was traced on this machine's
platform, which decides by what method it convolves, and lowered for CPU, CUDA and TPU.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from fftlm_jax.checkpoints.run_directory import EXPORT_FORMAT
from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.config.limits import parameter_count, require_room
from fftlm_jax.config.reading import read_model_config
from fftlm_jax.config.schema import ModelConfig, with_later_keys
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.layers import products_at
from fftlm_jax.model.parameters import by_name, misfits
from fftlm_jax.runtime.errors import CheckpointError, ConfigError, SaveError, UsageError
from fftlm_jax.runtime.platform import tracing_to_export
from fftlm_jax.runtime.untrusted import read_json
from fftlm_jax.spectral import LowPass

WEIGHTS, CONFIG, README, PROGRAM = "model.safetensors", "config.json", "README.md", "forward.stablehlo"

_FORMAT = {"format": EXPORT_FORMAT, "version": 1}
_LARGEST_CONFIG = 1 << 16  # Bytes; ours have less than a thousand.


@dataclasses.dataclass(frozen=True)
class ExportedConfig:
    """What it takes to run exported weights.

    Attributes:
        step: of the training that they come from.
        weights: `raw`, or `average` for the running average of the weights.
        model: the architecture.
        low_pass: the band limit of its mixers.
    """

    step: int
    weights: str
    model: ModelConfig
    low_pass: LowPass


@functools.partial(jax.jit, static_argnums=0)
def next_byte_logits(config: ExportedConfig, params: Params, bytes_BT: jax.Array) -> jax.Array:
    """Logits of the byte after each position, float32 [B, T, V]. Compiled once per shape."""
    model = nnx.merge(build(config.model)[0], params)
    with products_at(config.model.precision):
        return model.head.next_byte(model(bytes_BT, config.low_pass))


def load_exported(folder: str | Path) -> tuple[ExportedConfig, Params]:
    """Reads an export; nothing in it is executed.

    Raises:
        CheckpointError: if it is no export, damaged, or its arrays are not those that its config asks for.
        UsageError: without the package safetensors.
    """
    safetensors = required("safetensors.numpy")
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    file = folder / WEIGHTS
    try:
        tensors = safetensors.load_file(file)
    except Exception as error:  # The reader's own, and those of whatever a damaged header makes it do.
        raise CheckpointError(f"{file} cannot be read ({error}).") from None
    # Before such a model is built, which takes memory.
    require_room(str(folder / CONFIG), parameter_count(config.model), sum(tensor.size for tensor in tensors.values()))
    faults = misfits(tensors, tensors_of(build(config.model)[1]))
    if faults:
        raise CheckpointError(f"{file}: does not fit its config: {'; '.join(faults)}.")
    return config, params_of({name: jnp.asarray(tensor) for name, tensor in tensors.items()})


def export_files(config: ExportedConfig, params: Params, readme: str, program: bytes | None) -> dict[str, bytes]:
    """The contents of an export by file name."""
    tensors = {name: np.asarray(leaf) for name, leaf in tensors_of(params).items()}
    text = json.dumps({**_FORMAT, **dataclasses.asdict(config)}, indent=2) + "\n"
    files = {WEIGHTS: required("safetensors.numpy").save(tensors), README: readme.encode(), CONFIG: text.encode()}
    return files if program is None else {PROGRAM: program, **files}


def require_free(folder: Path) -> None:
    """Refuses a place where an export would overwrite anything but an export.

    Raises:
        UsageError: saying what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out: {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not _is_export(folder):
        raise UsageError(f"--out: {folder} holds files but no export; name another folder or empty it.")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replaces the export in a folder, if there is one, and leaves other files alone.

    The config comes last: without it an export that was cut short is none.

    Raises:
        SaveError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS, README, PROGRAM):
            (folder / name).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == CONFIG):
            (folder / name).write_bytes(files[name])
    except OSError as error:
        raise SaveError(f"--out: {folder} cannot be written ({error.strerror}).") from None


def tensors_of(params: Params) -> dict[str, Any]:
    """Parameters by name, as files hold them: `blocks.mixer.w_in`."""
    return by_name(params, ".")


def params_of(tensors: Mapping[str, Any]) -> Params:
    """The inverse of `tensors_of`."""
    params: Params = {}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        node = params
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tensor
    return params


def required(module: str) -> ModuleType:
    """Imports a module of the extra `export`.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UsageError(f'the package {package} is not installed; pip install -e ".[export]" brings it.') from None


def _is_export(folder: Path) -> bool:
    try:
        _read_config(folder / CONFIG)
    except CheckpointError:
        return False
    return True


def _read_config(file: Path) -> ExportedConfig:
    names = [field.name for field in dataclasses.fields(ExportedConfig)]
    try:
        values = read_json(file, _LARGEST_CONFIG)
        if not isinstance(values, dict) or {name: values.get(name) for name in _FORMAT} != _FORMAT:
            raise ValueError(f"it does not say {json.dumps(_FORMAT)[1:-1]}")
        if set(values) != {*_FORMAT, *names}:
            raise ValueError(f"beside its format it must say {', '.join(names)}, nothing less and nothing more")
        model, low_pass = read_model_config(with_later_keys(values)["model"]), LowPass(**values["low_pass"])
        whole_numbers = (values["step"], low_pass.cutoff, low_pass.bins, low_pass.transition_bins)
        if any(type(number) is not int or number < 0 for number in whole_numbers):
            raise ValueError("step and the numbers of low_pass must be whole")
        if low_pass.bins != freq_bins(model.seq_len) or values["weights"] not in ("raw", "average"):
            raise ValueError("its low_pass must have the bins of its window, and its weights be raw or average")
    except (OSError, ValueError, TypeError, ConfigError) as error:
        why = " ".join(str(error).splitlines())
        raise CheckpointError(f"{file} is no config of an export ({why}); name a folder that was exported.") from None
    return ExportedConfig(values["step"], values["weights"], model, low_pass)


PLATFORMS = ("cpu", "cuda", "tpu")


def forward_program(config: ExportedConfig) -> bytes:
    """Traces, lowers and serialises the forward pass of a model; its weights are arguments.

    Raises:
        UsageError: without the package flatbuffers, which the serialisation needs.
    """
    required("flatbuffers")

    # A function of its own for each call, or jax would find a lowering of earlier times, with its locations.
    def forward(tensors: Mapping[str, jax.Array], bytes_BT: jax.Array) -> jax.Array:
        return next_byte_logits(config, params_of(tensors), bytes_BT)

    (batch,) = export.symbolic_shape("batch")
    window = jax.ShapeDtypeStruct((batch, config.model.seq_len), np.uint8)
    with _no_source_locations(), tracing_to_export():
        exported = export.export(jax.jit(forward), platforms=PLATFORMS)(tensors_of(build(config.model)[1]), window)
    return bytes(exported.serialize())


@contextlib.contextmanager
def _no_source_locations() -> Iterator[None]:
    """Keeps the paths of Python files out of what is lowered: each operation would carry its stack of callers."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)
