"""Compiles training steps ahead, each once, and traces a window of steps for the profiler.

The background thread only saves waiting. A raise that is due waits for its compile and never happens "when ready", so
timing cannot change a result.

The first run of a program takes longer than the others: on CPU its kernels are only then made, and its memory is new.
There, small programs are also run once on zeros, behind the scenes.
"""

import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fftlm_jax.config.schema import ProfileConfig
from fftlm_jax.runtime import faults
from fftlm_jax.spectral import LowPass

_REHEARSED_BYTES = 256 * 2**20  # Arguments beyond this are not made twice, and their steps take long in any case.


class CompiledStep(NamedTuple):
    """An executable step and what it took to make it."""

    run: jax.stages.Compiled
    seconds: float


class StepVariant(NamedTuple):
    """What a step is compiled for: the band limit of the mixers, and the micro-batches it accumulates."""

    low_pass: LowPass
    micro_batches: int


class StepCompiler:
    """Compiles `lower(variant)`; variants with equal masks and micro-batches share a step.

    Use as a context manager: a live background thread would abort the interpreter at exit.

    Args:
        lower: traces the step of a variant.
        kernel_len: taps of the kernels that masks apply to.
        rehearse: also run each step once on zeros, where its arguments are small. Not for programs of several devices:
            another thread would send their collectives in an order of its own.
    """

    def __init__(
        self, lower: Callable[[StepVariant], jax.stages.Lowered], kernel_len: int, *, rehearse: bool = False
    ) -> None:
        self._lower = lower
        self._kernel_len = kernel_len
        self._rehearse = rehearse
        self._steps: dict[Hashable, Future] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")

    def __enter__(self) -> "StepCompiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def ahead(self, variant: StepVariant) -> Future:
        """Starts compiling in the background unless that was done before."""
        key = (variant.low_pass.mask_key(self._kernel_len), variant.micro_batches)
        if key not in self._steps:
            self._steps[key] = self._pool.submit(self._compile, variant)
        return self._steps[key]

    def get(self, variant: StepVariant) -> CompiledStep:
        """The step for a variant, compiling it or waiting for it where it must."""
        return self.ahead(variant).result()

    @property
    def compiled(self) -> int:
        """How many steps have been compiled or are being compiled."""
        return len(self._steps)

    def _compile(self, variant: StepVariant) -> CompiledStep:
        start = time.perf_counter()
        lowered = self._lower(variant)
        faults.point("in_compile", variant.low_pass.cutoff)
        executable = lowered.compile()
        if self._rehearse:
            _run_once(executable, lowered.args_info)
        return CompiledStep(executable, time.perf_counter() - start)


def _run_once(executable: jax.stages.Compiled, args_info: Any) -> None:
    """Runs a program on zeros, unless its arguments are large."""
    leaves, structure = jax.tree.flatten(args_info)
    if sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) > _REHEARSED_BYTES:
        return
    args, kwargs = jax.tree.unflatten(structure, [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves])
    jax.block_until_ready(executable(*args, **kwargs))


class ProfilerWindow:
    """Context manager around the loop; traces the steps `start` to `start + steps - 1` (those that are run)."""

    def __init__(self, config: ProfileConfig, directory: Path) -> None:
        self._steps = range(config.start, config.start + config.steps)
        self._directory = directory
        self._tracing = False

    def __enter__(self) -> "ProfilerWindow":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def before(self, step: int, state: Any) -> None:
        """Starts or stops the trace before a step; `state` is waited for, so that the trace holds its computation."""
        if step in self._steps and not self._tracing:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        elif step not in self._steps and self._tracing:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
