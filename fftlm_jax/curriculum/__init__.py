"""The frequency curriculum on the host: when to raise the cutoff, and what the learning rate answers. No JAX."""

from fftlm_jax.curriculum.controller import Controller, Raise, Rule, Spike, earliest_raises
from fftlm_jax.curriculum.ladder import DOCUMENT_TABLE, curriculum_cutoff, next_rung, resolve_ladder, starting_cutoff
from fftlm_jax.curriculum.lr_at_raise import Answer, adaptive_factor, answer_to_raise
from fftlm_jax.curriculum.plateau import adaptive_cutoff, improvement_bound, relative_improvement
