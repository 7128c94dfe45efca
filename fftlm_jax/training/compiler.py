"""Compiled training steps by mask and shape: each compiled at most once, the next ones ahead in the background.

The background thread only saves waiting. A raise that is due waits for its compile and never happens "when ready", so
timing cannot change a result.
"""

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax

from fftlm_jax import faults
from fftlm_jax.spectral import LowPass


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
    """

    def __init__(self, lower: Callable[[StepVariant], jax.stages.Lowered], kernel_len: int) -> None:
        self._lower = lower
        self._kernel_len = kernel_len
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
        return CompiledStep(executable, time.perf_counter() - start)
