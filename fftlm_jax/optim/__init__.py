"""Optax transforms, usable alone: Muon with a radial component, the sawtooth learning rate, routing by path."""

from fftlm_jax.optim.adaptive_alpha import AdaptiveAlpha
from fftlm_jax.optim.brake import hyperball, radial_brake
from fftlm_jax.optim.build import build_optimizer
from fftlm_jax.optim.cooldown import (
    STAGE_BATCH_TOKENS,
    STAGE_MULTIPLIERS,
    momentum_schedule,
    stage_cooldown_schedule,
    stage_schedule,
)
from fftlm_jax.optim.learning_rate import (
    ScheduledState,
    learning_rate_in_force,
    scale_by_given_learning_rate,
    scale_by_scheduled_learning_rate,
)
from fftlm_jax.optim.matrix_layout import MatrixLayout, from_matrices, resolve_layouts, to_matrices
from fftlm_jax.optim.matrix_shape import scale_by_matrix_shape, shape_factor
from fftlm_jax.optim.momentum import NesterovEmaState, scale_by_nesterov_ema
from fftlm_jax.optim.muon import muon_labels, muon_spectral, scale_by_muon
from fftlm_jax.optim.neuron_variance import NeuronVarianceState, scale_by_neuron_variance
from fftlm_jax.optim.orthogonalize import orthogonalize
from fftlm_jax.optim.per_leaf import PerPath
from fftlm_jax.optim.polar import polar
from fftlm_jax.optim.polar_express import polar_express_coefficients
from fftlm_jax.optim.radial import RadialParts, RadialStats, orthogonal_radial_decomposition
from fftlm_jax.optim.radial_statistics import radial_statistics
from fftlm_jax.optim.routing import (
    DECAYED_GROUPS,
    MUON_GROUPS,
    PARAMETER_RULES,
    group_of,
    label_params,
    path_string,
)
from fftlm_jax.optim.sawtooth import (
    SawtoothState,
    Stage,
    sawtooth_learning_rate,
    sawtooth_lr,
    sawtooth_schedule,
    scale_by_sawtooth,
    stages_in_steps,
)
from fftlm_jax.optim.weight_decay import CautiousDecayState, add_cautious_decayed_weights
from fftlm_jax.optim.with_spectral import SpectralState, with_spectral
