"""Adds a radial component to a matrix optimizer, and reads its statistics out of a state.

Muon's polar factor forgets how long a gradient is, and with it how much of it would merely scale the weight. Give that
part back, and only that part, and there are two ways to write it:

    branching   U = Polar(G_perp) + alpha G_par            alpha = 0 is not Muon: Polar(G_perp) != Polar(G)
    unified     U = Polar(G - alpha G_par) + alpha G_par   alpha = 0 is Muon, alpha = 1 is the branching form at 1

The unified path takes out of the polar factor what it adds back: G - alpha G_par goes from G to G_perp as alpha goes
from 0 to 1, so both ends are reached without an `if`, and everything between is continuous. It is the mode
"interpolate", and the one that published sweeps over alpha ran. "orthogonal" is the branching form.

Three things to know before believing a value of alpha.
Units: Polar has none and G_par has those of the gradient, so alpha = 0.1 on a loss summed over 2^16 tokens is
alpha = 6554 on a mean loss. Set `grad_units`, or a scale-free `normalize`.
Weight decay: alpha G_par = alpha rho W is a weight decay whose strength and sign the gradient chooses. A comparison
needs an arm with that decay and no alpha.
Tangency: G_perp is perpendicular to W, Polar(G_perp) is not (cosine 0.05 measured for a random gradient and a weight
with a decaying spectrum). "tangent" projects once more, after the polar factor.
"""

import collections
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fftlm_jax.optim.leaves import (
    LayoutSetting,
    PerPath,
    join_tree,
    path_string,
    per_leaf,
    require_params,
    split_tree,
    states_of,
)
from fftlm_jax.optim.radial import (
    NORMALIZATIONS,
    AdaptiveAlpha,
    Granularity,
    RadialParts,
    RadialStats,
    adapt_alpha,
    frobenius_component,
    init_adaptive_alpha,
    orthogonal_radial_decomposition,
    second_moment_component,
)

MODES = ("interpolate", "orthogonal", "add", "tangent")


class SpectralState(NamedTuple):
    """State of `with_spectral`. The trees hold, for every leaf, a tuple with one entry per array of its matrices."""

    count: jax.Array  # int32 scalar: updates done.
    inner: optax.OptState
    stats: Any  # RadialStats of the last update, (batch...) each; () without diagnostics.
    second_moment: Any  # float32 (batch...): root of the running mean of |G_par|^2; () unless normalized by it.
    adaptive: Any  # AdaptiveAlphaState; () unless adaptive.


def with_spectral(
    inner: optax.GradientTransformation,
    alpha: optax.ScalarOrSchedule | Mapping[str, Any] | PerPath = 0.0,
    *,
    mode: str = "interpolate",
    normalize: str = "none",
    grad_units: optax.ScalarOrSchedule = 1.0,
    beta2: float = 0.95,
    adaptive: AdaptiveAlpha | None = None,
    granularity: Granularity = "matrix",
    layout: LayoutSetting = None,
    diagnostics: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """U = inner(X) + alpha R: `inner` sees G without (some of) the part along the weight, R returns it unchanged.

    Args:
        inner: turns X into a direction, for example `orthogonalize()`.
        alpha: strength, a float or a schedule; or those by path, as {"attn": 0.05, "mlp": 0.15} or `PerPath`. Exactly 0
            gives exactly `inner` in the modes "interpolate" and "add".
        mode: what X is. "interpolate" G - alpha G_par; "orthogonal" G - G_par; "add" G; "tangent" G - G_par, and the
            part of inner(X) along the weight is removed too.
        normalize: what R is. "none" G_par times `grad_units`; "frobenius" sqrt(min(m, n)) cos(G, W) W / |W|, which has
            at most the size of a polar factor; "second_moment" the same with cos replaced by the projection of G over
            its root mean square in time (decay `beta2`), the variance reduction of a component with one number.
        grad_units: units of the gradients that alpha was tuned for, in those at hand, or a schedule of it: the number
            of tokens for an alpha from summed losses and gradients of a mean loss.
        adaptive: lets alpha follow the alignment, see `AdaptiveAlpha`.
        granularity: see `orthogonal_radial_decomposition`.
        layout: the matrices of the leaves, see `resolve_layouts`. Blocks (heads) are matrices of their own.
        diagnostics: keep `RadialStats` in the state, for `radial_statistics`.

    Returns:
        A transform with `SpectralState`, whose update needs `params`.

    Raises:
        ValueError: for unknown modes and normalizations, and for a second moment of anything but matrices.

    Source: the unified path of the source document; variance reduction after NorMuon (arXiv 2510.05491).
    """
    _check_choices(mode, normalize, granularity)
    inner = optax.with_extra_args_support(inner)
    decompose = functools.partial(orthogonal_radial_decomposition, granularity=granularity)

    def init(params: optax.Params) -> SpectralState:
        matrices = jax.eval_shape(lambda tree: split_tree(tree, layout), params)
        numbers = jax.eval_shape(lambda tree: jax.tree.map(decompose, tree, tree), matrices)
        stats = jax.tree.map(lambda _, part: _zeros_like(part.stats), matrices, numbers)
        each = lambda make: jax.tree.map(lambda _, stat: make(stat.cosine), matrices, stats)  # noqa: E731
        return SpectralState(
            count=jnp.zeros((), jnp.int32),
            inner=inner.init(params),
            stats=stats if diagnostics else (),
            second_moment=each(jnp.zeros_like) if normalize == "second_moment" else (),
            adaptive=each(lambda x: init_adaptive_alpha(x.shape)) if adaptive else (),
        )

    def update(
        updates: optax.Updates, state: SpectralState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, SpectralState]:
        require_params(params, "with_spectral")
        count = optax.safe_increment(state.count)
        gradients, weights = split_tree(updates, layout), split_tree(params, layout)
        parts = jax.tree.map(decompose, gradients, weights)
        alphas, adapted = _alphas(alpha, adaptive, updates, gradients, parts, state)
        units = grad_units(state.count) if callable(grad_units) else grad_units
        radial, second_moment = _radial(normalize, units, beta2, gradients, parts, state.second_moment, count)

        x = jax.tree.map(functools.partial(_take_out, mode), gradients, alphas, parts)
        direction, inner_state = inner.update(join_tree(x, updates, layout), state.inner, params, **extra)
        direction = split_tree(direction, layout)
        if mode == "tangent":
            project = lambda o, w: decompose(o, w).perpendicular.astype(o.dtype)  # noqa: E731
            direction = jax.tree.map(project, direction, weights)
        result = join_tree(jax.tree.map(_put_back, direction, alphas, radial), updates, layout)
        stats = jax.tree.map(lambda _, part: part.stats, gradients, parts) if diagnostics else ()
        return result, SpectralState(count, inner_state, stats, second_moment, adapted)

    return optax.GradientTransformationExtraArgs(init, update)


def _alphas(
    alpha: Any, adaptive: AdaptiveAlpha | None, updates: Any, gradients: Any, parts: Any, state: SpectralState
) -> tuple[Any, Any]:
    """Alpha of every matrix array, a number or (batch..., 1, 1), and the adaptive state."""
    values = per_leaf(alpha, updates, lambda value: not isinstance(value, Mapping | PerPath | list | tuple))
    values = [value(state.count) if callable(value) else value for value in values]
    treedef = jax.tree.structure(updates)
    groups = treedef.flatten_up_to(gradients)
    alphas = treedef.unflatten([(value,) * len(group) for value, group in zip(values, groups, strict=True)])
    if adaptive is None:
        return alphas, ()
    adapt = lambda _, part, old: adapt_alpha(adaptive, part.stats, old)  # noqa: E731
    multipliers, adapted = _unzip(gradients, jax.tree.map(adapt, gradients, parts, state.adaptive))
    return jax.tree.map(lambda a, m: a * m[..., None, None], alphas, multipliers), adapted


def _radial(
    normalize: str, units: Any, beta2: float, gradients: Any, parts: Any, second_moment: Any, count: jax.Array
) -> tuple[Any, Any]:
    """R of every matrix array, and the new second moments."""
    if normalize == "none":
        return jax.tree.map(lambda _, part: units * part.parallel, gradients, parts), ()
    if normalize == "frobenius":
        component = lambda _, part: frobenius_component(part.parallel, part.stats.gradient_norm)  # noqa: E731
        return jax.tree.map(component, gradients, parts), ()
    advance = lambda _, part, root: second_moment_component(part.parallel, part.stats, root, count, beta2)  # noqa: E731
    return _unzip(gradients, jax.tree.map(advance, gradients, parts, second_moment))


def _take_out(mode: str, gradient: jax.Array, alpha: Any, part: RadialParts) -> jax.Array:
    """X, what the inner transform sees."""
    if mode == "add" or (mode == "interpolate" and _is_static_zero(alpha)):
        return gradient
    if mode in ("orthogonal", "tangent"):
        return part.perpendicular.astype(gradient.dtype)
    x = gradient - jnp.asarray(alpha).astype(part.parallel.real.dtype) * part.parallel
    # A traced alpha of 0 is Muon too, even where the weight is so wild that 0 times G_par is not 0.
    return jnp.where(alpha == 0, gradient, x.astype(gradient.dtype))


def _put_back(direction: jax.Array, alpha: Any, radial: jax.Array) -> jax.Array:
    """U = inner(X) + alpha R."""
    if _is_static_zero(alpha):
        return direction
    u = direction + jnp.asarray(alpha).astype(radial.real.dtype) * radial
    return jnp.where(alpha == 0, direction, u.astype(direction.dtype))


def _is_static_zero(alpha: Any) -> bool:
    return isinstance(alpha, int | float) and alpha == 0


def _unzip(like: Any, pairs: Any) -> tuple[Any, Any]:
    """A tree of pairs at the leaves of `like`, as two trees."""
    treedef = jax.tree.structure(like)
    flat = treedef.flatten_up_to(pairs)
    return treedef.unflatten([pair[0] for pair in flat]), treedef.unflatten([pair[1] for pair in flat])


def _zeros_like(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _check_choices(mode: str, normalize: str, granularity: Granularity) -> None:
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}, expected one of {', '.join(MODES)}")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"unknown normalize {normalize!r}, expected one of {', '.join(NORMALIZATIONS)}")
    if normalize == "second_moment" and granularity != "matrix":
        raise ValueError(f"a second moment is kept per matrix, not per {granularity}")


def radial_statistics(state: optax.OptState) -> dict[str, RadialStats]:
    """Diagnostics of the last update by path of the parameter, out of any optimizer state.

    Arrays with several matrices of different widths have an index behind their path. Empty where nothing is kept.

    Raises:
        ValueError: if two `with_spectral` describe the same parameter.
    """
    is_stats = lambda node: isinstance(node, RadialStats)  # noqa: E731
    found: dict[str, RadialStats] = {}
    for node in states_of(state, SpectralState):
        entries = jax.tree_util.tree_leaves_with_path(node.stats, is_leaf=is_stats)
        counts = collections.Counter(path[:-1] for path, _ in entries)
        for path, stats in entries:
            name = path_string(path if counts[path[:-1]] > 1 else path[:-1])
            if name in found:
                raise ValueError(f"the optimizer state holds radial statistics of {name} twice")
            found[name] = stats
        found |= {name: s for name, s in radial_statistics(node.inner).items() if name not in found}
    return found
