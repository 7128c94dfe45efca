"""A planted fault: windows that make the loss NaN."""

import jax.numpy as jnp

from fftlm_jax.training import run_parts
from fftlm_jax.training import step as step_module


def poison_windows(monkeypatch):
    """From now on the loss of a window that holds byte 255 is NaN."""

    def score(graph, params, windows_BW, low_pass, **options):
        scores = real(graph, params, windows_BW, low_pass, **options)
        return scores._replace(next_byte_BT=jnp.where(jnp.any(windows_BW == 255), jnp.nan, scores.next_byte_BT))

    real = step_module.score
    monkeypatch.setattr(step_module, "score", score)
    monkeypatch.setattr(run_parts, "make_train_step", step_module.make_train_step)  # None that other runs share.
