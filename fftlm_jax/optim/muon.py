"""Muon as a chain: momentum, polar factor (with a radial component), neuron variance, shape factor.

Every link is a transform of its own; `scale_by_muon` is the usual order of them, `muon_spectral` a whole optimizer with
AdamW for the parameters that are not matrices of a linear map. For another order, write the chain.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from fftlm_jax.optim.leaves import LayoutSetting, PerPath, path_string
from fftlm_jax.optim.muon_links import (
    add_cautious_decayed_weights,
    scale_by_matrix_shape,
    scale_by_nesterov_ema,
    scale_by_neuron_variance,
)
from fftlm_jax.optim.orthogonalize import StackSharding, orthogonalize
from fftlm_jax.optim.polar import PolarMethod
from fftlm_jax.optim.radial import AdaptiveAlpha
from fftlm_jax.optim.with_spectral import with_spectral

AlphaSetting = optax.ScalarOrSchedule | Mapping[str, Any] | PerPath

# Tables, scales and readouts: their rows are looked up or their entries act alone, so no polar factor makes sense.
ADAMW_PATHS = r"(.*/)?(\w*embed\w*|wte|wpe|(lm_|output_)?head|\w*norm\w*|\w*bias|scale|gain|spectrum|taps|memory)(/.*)?"


def scale_by_muon(
    beta: optax.ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = True,
    style: str = "keller",
    mu_dtype: jax.typing.DTypeLike | None = None,
    method: PolarMethod = "polar_express",
    steps: int | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    preconditioning: str = "frobenius",
    alpha: AlphaSetting = 0.0,
    mode: str = "interpolate",
    normalize: str = "none",
    grad_units: optax.ScalarOrSchedule = 1.0,
    adaptive: AdaptiveAlpha | None = None,
    diagnostics: bool = True,
    neuron_beta2: jax.typing.ArrayLike | None = None,
    neuron_axis: str = "out",
    shape: str = "keller",
    layout: LayoutSetting = None,
    max_stack: int | None = None,
    stack_sharding: jax.sharding.NamedSharding | None = None,
    leaf_sharding: StackSharding = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of Muon with a radial component; alpha = 0 is Muon. All leaves must have rank 2 or more.

    Args:
        beta, nesterov, style, mu_dtype: see `scale_by_nesterov_ema`.
        method, steps, dtype, preconditioning, max_stack, stack_sharding, leaf_sharding: see `orthogonalize`.
        alpha, mode, normalize, grad_units, adaptive, diagnostics: see `with_spectral`.
        neuron_beta2, neuron_axis: see `scale_by_neuron_variance`; None leaves it out.
        shape: see `scale_by_matrix_shape`.
        layout: the matrices of the leaves, see `resolve_layouts`; the last two axes of each leaf are (in, out) by
            default, all others batch.

    Returns:
        A transform without learning rate, whose update needs `params`.

    Source: Jordan et al., Muon (kellerjordan.github.io/posts/muon); the radial component from the source document.
    """
    inner = orthogonalize(
        method,
        steps=steps,
        dtype=dtype,
        preconditioning=preconditioning,
        layout=layout,
        max_stack=max_stack,
        stack_sharding=stack_sharding,
        leaf_sharding=leaf_sharding,
    )
    if neuron_beta2 is not None:
        inner = optax.chain(inner, scale_by_neuron_variance(neuron_beta2, axis=neuron_axis, layout=layout))
    radial = dict(mode=mode, normalize=normalize, grad_units=grad_units, adaptive=adaptive, diagnostics=diagnostics)
    return optax.chain(
        scale_by_nesterov_ema(beta, nesterov=nesterov, style=style, mu_dtype=mu_dtype),
        with_spectral(inner, alpha, layout=layout, **radial),
        scale_by_matrix_shape(shape, layout=layout),
    )


def muon_spectral(
    learning_rate: optax.ScalarOrSchedule | None,
    alpha: AlphaSetting = 0.0,
    *,
    beta: optax.ScalarOrSchedule = 0.95,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    cautious: bool = True,
    adam_scale: optax.ScalarOrSchedule = 1.0,
    adam_b1: jax.typing.ArrayLike = 0.9,
    adam_b2: jax.typing.ArrayLike = 0.95,
    adam_eps: jax.typing.ArrayLike = 1e-8,
    adam_weight_decay: optax.ScalarOrSchedule = 0.0,
    labels: Any | Callable[[optax.Params], Any] | None = None,
    muon_options: Mapping[str, Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon with a radial component for the matrices, AdamW for the rest.

    Args:
        learning_rate: of Muon, a float or a schedule. None leaves it out: updates are directions of ascent, for a chain
            that ends in a learning rate of its own, such as `scale_by_sawtooth`.
        alpha: strength of the radial component, see `with_spectral`. 0 is Muon.
        beta: momentum of Muon, a float or a schedule.
        weight_decay: of the matrices, per unit of learning rate.
        cautious: decay only where the update shrinks the weight, see `add_cautious_decayed_weights`.
        adam_scale: learning rate of AdamW in units of `learning_rate`, a float or a schedule.
        adam_b1, adam_b2, adam_eps, adam_weight_decay: of AdamW.
        labels: tree of "muon" and "adamw", or a function from the parameters to one; `muon_labels` by default.
        muon_options: further keyword arguments of `scale_by_muon`.

    Returns:
        An optimizer, whose update needs `params`. Under `optax.inject_hyperparams` every number is a hyperparameter.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"mlp": jnp.eye(4), "norm": jnp.ones(4)}
        >>> tx = muon_spectral(0.02, alpha=0.1, weight_decay=0.01, adam_scale=0.1)
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> round(float(updates["norm"][0]), 6)
        -0.002
    """
    decay = add_cautious_decayed_weights if cautious else optax.add_decayed_weights
    scale_adam = optax.scale_by_schedule(adam_scale) if callable(adam_scale) else optax.scale(adam_scale)
    muon = optax.chain(scale_by_muon(beta, alpha=alpha, **(muon_options or {})), decay(weight_decay))
    adamw = optax.chain(
        optax.scale_by_adam(b1=adam_b1, b2=adam_b2, eps=adam_eps),
        optax.add_decayed_weights(adam_weight_decay),
        scale_adam,
    )
    both = optax.partition({"muon": muon, "adamw": adamw}, muon_labels if labels is None else labels)
    return both if learning_rate is None else optax.chain(both, optax.scale_by_learning_rate(learning_rate))


def muon_labels(params: optax.Params, adamw_paths: str = ADAMW_PATHS) -> Any:
    """Tree of "muon" and "adamw": AdamW for leaves of rank below 2 and for paths that match the whole expression."""

    def label(path: tuple[Any, ...], leaf: jax.Array) -> str:
        is_adamw = leaf.ndim < 2 or re.fullmatch(adamw_paths, path_string(path), re.IGNORECASE)
        return "adamw" if is_adamw else "muon"

    return jax.tree_util.tree_map_with_path(label, params)
