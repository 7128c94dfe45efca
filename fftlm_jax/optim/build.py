"""The optimizer of a run, assembled from its config."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from fftlm_jax.config import OptimConfig
from fftlm_jax.optim.routing import DECAYED_GROUPS, label_params
from fftlm_jax.optim.sawtooth import Stage, scale_by_sawtooth


def build_optimizer(
    config: OptimConfig, stages: Sequence[Stage], base_lr: float
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, AdamW with decoupled decay on matrices, and the sawtooth learning rate.

    `update` takes the sawtooth's events (`restart`, `pulse`, `reduce_by`) as keyword arguments.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=_is_decayed),
        scale_by_sawtooth(stages, base_lr),
    )


def _is_decayed(params: Any) -> Any:
    return jax.tree.map(lambda group: group in DECAYED_GROUPS, label_params(params))
