"""Optax transforms, usable alone: Muon with a radial component, the sawtooth learning rate."""

from fftlm_jax.optim.brake import hyperball, radial_brake
from fftlm_jax.optim.learning_rate import (
    STAGE_BATCH_TOKENS,
    STAGE_MULTIPLIERS,
    ScheduledState,
    learning_rate_in_force,
    momentum_schedule,
    scale_by_given_learning_rate,
    scale_by_scheduled_learning_rate,
    stage_cooldown_schedule,
    stage_schedule,
)
from fftlm_jax.optim.leaves import MatrixLayout, PerPath, from_matrices, resolve_layouts, to_matrices
from fftlm_jax.optim.muon import muon_labels, muon_spectral, scale_by_muon
from fftlm_jax.optim.muon_links import (
    CautiousDecayState,
    NesterovEmaState,
    NeuronVarianceState,
    add_cautious_decayed_weights,
    scale_by_matrix_shape,
    scale_by_nesterov_ema,
    scale_by_neuron_variance,
    shape_factor,
)
from fftlm_jax.optim.orthogonalize import orthogonalize
from fftlm_jax.optim.polar import polar, polar_express_coefficients
from fftlm_jax.optim.radial import AdaptiveAlpha, RadialParts, RadialStats, orthogonal_radial_decomposition
from fftlm_jax.optim.sawtooth import (
    SawtoothState,
    Stage,
    sawtooth_learning_rate,
    sawtooth_lr,
    sawtooth_schedule,
    scale_by_sawtooth,
    stages_in_steps,
)
from fftlm_jax.optim.with_spectral import SpectralState, radial_statistics, with_spectral
