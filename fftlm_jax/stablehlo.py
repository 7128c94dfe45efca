"""The forward pass of a model as a program of its own, which runs without this package: `jax.export` to StableHLO.

    forward = jax.export.deserialize(bytearray(program))
    logits = forward.call(tensors, bytes_BT)

Takes the tensors by name, as `model.safetensors` holds them, and any number B of windows of T = `seq_len` bytes
(uint8); returns the logits of the byte after each position, float32 [B, T, 256]. It was traced on this machine's
platform, which decides by what method it convolves, and lowered for CPU, CUDA and TPU.
"""

import contextlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax import export

from fftlm_jax.exported import ExportedConfig, next_byte_logits, params_of, required, tensors_of
from fftlm_jax.model import build

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
    with _no_source_locations():
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
