"""The links of Muon besides the polar factor: momentum, neuron variance, scale by shape, cautious decay.

Momentum with Nesterov's look-ahead, in the three forms that Muon implementations use.

They agree on the direction of a constant gradient and in the long run; they differ in the first steps and in scale. A
polar factor forgets the scale, so for Muon only the first steps matter.

NorMuon: neurons of a polar factor brought to one size by a running second moment each.

Li et al., "NorMuon: Making Muon more efficient and scalable" (arXiv 2510.05491). The norm of the matrix stays as it
was, so learning rates of Muon remain valid. For the same reason the second moment needs no bias correction: it cancels.

Factors that make one learning rate fit matrices of all shapes.

A polar factor has singular values near 1, so its entries shrink with its size. What should stay the same from width to
width is a choice: the size of the product x @ W ("keller", "spectral"), or that of the entries ("rms").
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.leaves import LayoutSetting, join_tree, require_params, split_tree
from fftlm_jax.optim.radial import safe_divide, safe_norm, wide

MOMENTUM_STYLES = ("keller", "optax", "heavyball")


class NesterovEmaState(NamedTuple):
    """State of `scale_by_nesterov_ema`."""

    count: jax.Array  # int32 scalar: updates done.
    mu: optax.Updates  # Momentum M, like the parameters, in mu_dtype.


def scale_by_nesterov_ema(
    beta: optax.ScalarOrSchedule = 0.95,
    *,
    nesterov: bool = True,
    style: str = "keller",
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Replaces gradients g by their momentum.

    Args:
        beta: decay b of the momentum per update, or a schedule of it.
        nesterov: look one step ahead, as below; without it the result is M (bias-corrected for "optax").
        style: "keller", M <- b M + (1-b) g and b M + (1-b) g, without bias correction (github.com/KellerJordan/Muon);
            "optax", the same with M corrected for update t+1 and g for update t (`optax.contrib.muon`); "heavyball",
            M <- b M + g and g + b M (torch.optim.SGD).
        mu_dtype: of the momentum; that of the parameters by default. Use float32 for bfloat16 parameters.

    Returns:
        A transform with `NesterovEmaState`. Arithmetic is in float32 or wider, results keep the dtype of the gradients.
    """
    if style not in MOMENTUM_STYLES:
        raise ValueError(f"unknown momentum style {style!r}, expected one of {', '.join(MOMENTUM_STYLES)}")

    def init(params: optax.Params) -> NesterovEmaState:
        return NesterovEmaState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params, dtype=mu_dtype))

    def update(
        updates: optax.Updates, state: NesterovEmaState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NesterovEmaState]:
        del params
        b = beta(state.count) if callable(beta) else beta
        count = optax.safe_increment(state.count)
        weight = 1.0 if style == "heavyball" else 1 - b
        mu = jax.tree.map(lambda m, g: b * _wide(m) + weight * _wide(g), state.mu, updates)
        direction = jax.tree.map(lambda m, g: _direction(m, _wide(g), b, count).astype(g.dtype), mu, updates)
        mu = jax.tree.map(lambda new, old: new.astype(old.dtype), mu, state.mu)
        return direction, NesterovEmaState(count, mu)

    def _direction(m: jax.Array, g: jax.Array, b: Any, count: jax.Array) -> jax.Array:
        if style == "heavyball":
            return g + b * m if nesterov else m
        if style == "keller":
            return b * m + (1 - b) * g if nesterov else m
        now, following = 1 - b**count, 1 - b ** (count + 1)
        return b * m / following + (1 - b) * g / now if nesterov else m / now

    return optax.GradientTransformation(init, update)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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


SHAPE_STYLES = ("keller", "spectral", "rms", "none")


def shape_factor(fan_in: int, fan_out: int, style: str) -> float:
    """Factor for the update of a matrix (in, out).

    "keller" sqrt(max(1, out / in)), github.com/KellerJordan/Muon; "spectral" sqrt(out / in), arXiv 2310.17813; "rms"
    0.2 sqrt(max(in, out)), which has the root mean square of an AdamW update, arXiv 2502.16982; "none" 1.
    """
    match style:
        case "keller":
            return max(1.0, fan_out / fan_in) ** 0.5
        case "spectral":
            return (fan_out / fan_in) ** 0.5
        case "rms":
            return 0.2 * max(fan_in, fan_out) ** 0.5
        case "none":
            return 1.0
    raise ValueError(f"unknown shape style {style!r}, expected one of {', '.join(SHAPE_STYLES)}")


def scale_by_matrix_shape(style: str = "keller", *, layout: LayoutSetting = None) -> optax.GradientTransformation:
    """Multiplies every matrix by `shape_factor`. Stateless.

    Args:
        style: "keller", "spectral", "rms" or "none".
        layout: the matrices of the leaves, see `resolve_layouts`. Blocks (heads) count with their own width.
    """
    shape_factor(1, 1, style)  # An unknown style is an error here, not at the first update.

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        scaled = jax.tree.map(lambda x: x * shape_factor(*x.shape[-2:], style), split_tree(updates, layout))
        return join_tree(scaled, updates, layout), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class CautiousDecayState(NamedTuple):
    """State of `add_cautious_decayed_weights`."""

    count: jax.Array  # int32 scalar: updates done, for schedules.


def cautious_decay(update: jax.Array, weight: jax.Array, decay: jax.typing.ArrayLike, strict: bool) -> jax.Array:
    """`update + decay * weight` where both have the same sign, `update` elsewhere; `update` is a direction of ascent.

    A product of exactly 0 counts as the same sign unless `strict`. Of complex entries it is the real part of u conj(w).
    """
    product = (update * weight.conj()).real
    is_decayed = product > 0 if strict else product >= 0
    decay = jnp.asarray(decay).astype(jnp.promote_types(update.real.dtype, jnp.float32))
    return (update + jnp.where(is_decayed, decay * weight, 0)).astype(update.dtype)


def add_cautious_decayed_weights(
    weight_decay: optax.ScalarOrSchedule = 0.0, *, strict: bool = False, mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Adds decayed weights to directions of ascent, so it stands before the learning rate, as in AdamW.

    Args:
        weight_decay: strength per unit of learning rate, or a schedule of it.
        strict: leave alone the entries whose update or weight is 0.
        mask: tree of booleans, or a function from parameters to one: which leaves to decay. All by default.

    Returns:
        A transform with `CautiousDecayState`, whose update needs `params`.

    Source: Chen et al., "Cautious Weight Decay" (arXiv 2510.12402).
    """

    def init(params: optax.Params) -> CautiousDecayState:
        del params
        return CautiousDecayState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: CautiousDecayState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, CautiousDecayState]:
        del extra
        require_params(params, "add_cautious_decayed_weights")
        decay = weight_decay(state.count) if callable(weight_decay) else weight_decay
        updates = jax.tree.map(lambda u, w: cautious_decay(u, w, decay, strict), updates, params)
        return updates, CautiousDecayState(optax.safe_increment(state.count))

    tx = optax.GradientTransformationExtraArgs(init, update)
    return tx if mask is None else optax.masked(tx, mask)
