"""A profiler trace over a window of steps, whole whatever ends the run."""

from pathlib import Path
from typing import Any

import jax

from fftlm_jax.config import ProfileConfig


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
