"""NorMuon: neurons of a polar factor brought to one size by a running second moment each.

Li et al., "NorMuon: Making Muon more efficient and scalable" (arXiv 2510.05491). The norm of the matrix stays as it
was, so learning rates of Muon remain valid. For the same reason the second moment needs no bias correction: it cancels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.matrix_layout import LayoutSetting, join_tree, split_tree
from fftlm_jax.optim.radial import safe_divide, safe_norm, wide

AXES = ("out", "in", "longest")


class NeuronVarianceState(NamedTuple):
    """State of `scale_by_neuron_variance`."""

    second_moment: Any  # For every leaf a tuple of (batch..., 1, out) or (batch..., in, 1), float32 or wider.


def scale_by_neuron_variance(
    beta2: jax.typing.ArrayLike = 0.95, *, axis: str = "out", eps: float = 1e-10, layout: LayoutSetting = None
) -> optax.GradientTransformation:
    """Divides every neuron by the root of its running mean square, and restores the norm of the matrix.

    Args:
        beta2: decay of the running mean per update.
        axis: what a neuron is: "out" (the paper), a column of (in, out); "in", a row; "longest", whichever there are
            more of, "out" if as many (the modded-nanogpt speed runs).
        eps: smallest mean square to divide by. Entries of an m x n polar factor have one of 1 / max(m, n).
        layout: the matrices of the leaves, see `resolve_layouts`.

    Returns:
        A transform with `NeuronVarianceState`.
    """
    if axis not in AXES:
        raise ValueError(f"unknown neuron axis {axis!r}, expected one of {', '.join(AXES)}")

    def init(params: optax.Params) -> NeuronVarianceState:
        matrices = jax.eval_shape(lambda tree: split_tree(tree, layout), params)
        means = jax.eval_shape(lambda tree: jax.tree.map(lambda x: mean_square(x, axis), tree), matrices)
        return NeuronVarianceState(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), means))

    def update(
        updates: optax.Updates, state: NeuronVarianceState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NeuronVarianceState]:
        del params
        matrices = split_tree(updates, layout)
        decay = lambda v, u: (beta2 * v + (1 - beta2) * mean_square(u, axis)).astype(v.dtype)  # noqa: E731
        second_moment = jax.tree.map(decay, state.second_moment, matrices)
        scaled = jax.tree.map(lambda u, v: equalize(u, v, eps), matrices, second_moment)
        return join_tree(scaled, updates, layout), NeuronVarianceState(second_moment)

    return optax.GradientTransformation(init, update)


def mean_square(u: jax.Array, axis: str) -> jax.Array:
    """Mean square of every neuron: (batch..., 1, out) or (batch..., in, 1)."""
    fan_in, fan_out = u.shape[-2:]
    is_out = axis == "out" or (axis == "longest" and fan_out >= fan_in)
    return jnp.mean(jnp.square(jnp.abs(wide(u))), axis=-2 if is_out else -1, keepdims=True)


def equalize(u: jax.Array, second_moment: jax.Array, eps: float) -> jax.Array:
    """`u` over the root of the second moments of its neurons, at the norm it had."""
    y = wide(u) / jnp.sqrt(jnp.maximum(second_moment, eps))
    return (y * safe_divide(safe_norm(wide(u)), safe_norm(y))).astype(u.dtype)
