"""What the training loss does around a raise: how far it jumps, how long it takes to come back, how it wobbles."""

from collections.abc import Sequence

import numpy as np

from fftlm_jax.recording.history import Record

_NEAR = 10  # Steps whose mean loss counts as "just before" and "just after".
_WOBBLE = slice(10, 60)  # Steps after the raise in which the documents see the loss oscillate.


def first_raise(records: Sequence[Record]) -> int | None:
    """Step of the first raise of a run, or None."""
    return next((r["step"] for r in records if r.get("event") == "cutoff_raised"), None)


def losses(records: Sequence[Record]) -> np.ndarray:
    """Training losses [steps] in nats, entry i of update i."""
    return np.array([r["loss"] for r in records if r["kind"] == "train"])


def after_raise(records: Sequence[Record]) -> dict[str, float]:
    """Numbers about the first raise; empty for a run without one.

    Returns:
        `spike`: mean loss of the 10 steps after it minus that of the 10 before (nats).
        `recovery`: steps until the mean of 10 losses is first back at the level before; the rest of the run if never.
        `wobble`: standard deviation of the losses 10 to 60 steps after it around their own line (nats). Batches differ
            in difficulty, so it is never 0; runs on the same seed saw the same batches and can be compared.
        `alternation`: correlation of successive residuals around that line; oscillation makes it negative.
    """
    step, loss = first_raise(records), losses(records)
    if step is None or len(loss) < step + _WOBBLE.stop:
        return {}
    before = loss[step - _NEAR : step].mean()
    means = np.convolve(loss[step:], np.ones(_NEAR) / _NEAR, mode="valid")
    back = np.flatnonzero(means <= before)
    residual = detrended(loss[step:][_WOBBLE])
    return {
        "spike": float(loss[step : step + _NEAR].mean() - before),
        "recovery": float(back[0] if len(back) else len(means)),
        "wobble": float(residual.std()),
        "alternation": float(np.corrcoef(residual[:-1], residual[1:])[0, 1]),
    }


def detrended(values: np.ndarray) -> np.ndarray:
    """Residuals [n] around the least-squares line."""
    steps = np.arange(len(values))
    return values - np.polyval(np.polyfit(steps, values, 1), steps)
