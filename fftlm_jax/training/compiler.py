"""Compiled training steps by mask: each compiled at most once, the next rung's ahead of time in the background.

The background thread only saves waiting. A raise that is due waits for its compile and never happens "when ready", so
timing cannot change a result.
"""

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from fftlm_jax.spectral import LowPass


class CompiledStep(NamedTuple):
    """An executable step and what it took to make it."""

    run: jax.stages.Compiled
    seconds: float


class StepCompiler:
    """Compiles `make_step(low_pass)` for the given abstract arguments; steps with equal mask keys are shared.

    Use as a context manager: a live background thread would abort the interpreter at exit.
    """

    def __init__(
        self,
        make_step: Callable[[LowPass], Any],
        abstract_arguments: tuple[Any, ...],
        mask_key: Callable[[LowPass], Hashable],
    ) -> None:
        self._make_step = make_step
        self._abstract_arguments = abstract_arguments
        self._mask_key = mask_key
        self._steps: dict[Hashable, Future] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")

    def __enter__(self) -> "StepCompiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def is_compiled(self, low_pass: LowPass) -> bool:
        """Whether the step for this band limit was asked for and is ready."""
        future = self._steps.get(self._mask_key(low_pass))
        return future is not None and future.done()

    def ahead(self, low_pass: LowPass) -> Future:
        """Starts compiling in the background unless that was done before."""
        key = self._mask_key(low_pass)
        if key not in self._steps:
            self._steps[key] = self._pool.submit(self._compile, low_pass)
        return self._steps[key]

    def get(self, low_pass: LowPass) -> CompiledStep:
        """The step for a band limit, compiling it or waiting for it where it must."""
        return self.ahead(low_pass).result()

    @property
    def compiled(self) -> int:
        """How many steps have been compiled or are being compiled."""
        return len(self._steps)

    def _compile(self, low_pass: LowPass) -> CompiledStep:
        start = time.perf_counter()
        executable = self._make_step(low_pass).lower(*self._abstract_arguments).compile()
        return CompiledStep(executable, time.perf_counter() - start)
