"""Factors that make one learning rate fit matrices of all shapes.

A polar factor has singular values near 1, so its entries shrink with its size. What should stay the same from width to
width is a choice: the size of the product x @ W ("keller", "spectral"), or that of the entries ("rms").
"""

import jax
import optax

from fftlm_jax.optim.matrix_layout import LayoutSetting, join_tree, split_tree

STYLES = ("keller", "spectral", "rms", "none")


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
    raise ValueError(f"unknown shape style {style!r}, expected one of {', '.join(STYLES)}")


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
