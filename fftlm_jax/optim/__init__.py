"""Optax transforms, usable alone: the sawtooth learning rate with restarts, routing of parameters by path."""

from fftlm_jax.optim.build import build_optimizer
from fftlm_jax.optim.routing import DECAYED_GROUPS, PARAMETER_RULES, label_params, path_string
from fftlm_jax.optim.sawtooth import (
    SawtoothState,
    Stage,
    sawtooth_learning_rate,
    sawtooth_lr,
    sawtooth_schedule,
    scale_by_sawtooth,
    stages_in_steps,
)
