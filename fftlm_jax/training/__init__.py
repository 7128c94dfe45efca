"""Training: the jitted step, the loop around it, checkpoints, and what a run leaves on disk."""

from fftlm_jax.training.loop import run
