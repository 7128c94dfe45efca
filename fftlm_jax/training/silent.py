"""The recorder of the processes that do not write: takes every call of `Recorder`, and says nothing."""

from typing import Any

from fftlm_jax.errors import NonFiniteError


class SilentRecorder:
    """Stands in for `Recorder` (and, as `console`, for its console) in all processes but the first."""

    @property
    def console(self) -> "SilentRecorder":
        return self

    def flush(self) -> tuple[int, int]:
        """No bytes; the first process saves its own."""
        return 0, 0

    def nonfinite(self, done: int, *facts: Any) -> NonFiniteError:
        """The error that ends every process; the first one says more."""
        return NonFiniteError(f"step {done}: the loss or the gradient is not finite; see what process 0 says.")

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None
