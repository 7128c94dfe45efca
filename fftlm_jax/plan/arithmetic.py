"""Counts the arithmetic of a traced program, and what it keeps between its forward and its backward pass.

Counted from the jaxpr and not by the compiler: XLA's own analysis counts a loop's body once however often it runs, and
knows nothing of programs for a GPU that is not there. Matrix products, convolutions and Fourier transforms count; what
is done to single numbers does not. The figures are those of all devices together.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend import core


def flops_of(jaxpr: core.ClosedJaxpr) -> float:
    """FLOPs of one run of a program on all its devices; a multiplication and an addition are two.

    A loop whose length the trace does not know (`while_loop`) counts once, a condition as its dearest branch.
    """
    return _flops(jaxpr.jaxpr)


def kept_for_backward(jaxpr: core.ClosedJaxpr) -> int:
    """Bytes that loops over layers hand from the forward to the backward pass, as traced, on all devices.

    Reverse-mode differentiation turns a loop into one that stacks what its gradient needs, and one that reads those
    stacks backwards. The largest such pair counts; the compiler may store it more sparingly. 0 where layers are
    unrolled.
    """
    return max(_kept(jaxpr.jaxpr), default=0)


def _flops(jaxpr: core.Jaxpr) -> float:
    return sum(_flops_of_equation(equation) for equation in jaxpr.eqns)


def _flops_of_equation(equation: core.JaxprEqn) -> float:
    name, settings = equation.primitive.name, equation.params
    out = equation.outvars[0].aval if equation.outvars else None
    if name == "dot_general":
        (contracted, _), _ = settings["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * out.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        return 2.0 * out.size * kernel.size / kernel.shape[settings["dimension_numbers"].rhs_spec[0]]
    if name == "fft":
        lengths = settings["fft_lengths"]
        n = math.prod(lengths)
        whole = equation.invars[0].aval if settings["fft_type"].name == "RFFT" else out
        rows = whole.size / n
        complexity = 5.0 if settings["fft_type"].name in ("FFT", "IFFT") else 2.5
        return complexity * rows * n * math.log2(max(n, 2))
    inner = [_flops(part) for part in _jaxprs_in(settings)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * _repetitions(equation)


def _repetitions(equation: core.JaxprEqn) -> int:
    """How often the programs inside an equation run: a loop's length, or the devices that each run their own."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        mesh, manual = equation.params["mesh"], equation.params.get("manual_axes")
        return math.prod(mesh.shape[axis] for axis in (mesh.axis_names if manual is None else manual))
    return 1


def _jaxprs_in(settings: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for leaf in jax.tree.leaves(settings, is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr)):
        if isinstance(leaf, core.ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, core.Jaxpr):
            yield leaf


def _kept(jaxpr: core.Jaxpr) -> Iterator[int]:
    stacked = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            (body,) = _jaxprs_in(equation.params)
            if equation.params["reverse"]:
                yield sum(_bytes(x.aval) for x in _stacks(equation.invars, body.invars) if x in stacked)
            stacked |= set(_stacks(equation.outvars, body.outvars))
        devices = _repetitions(equation) if equation.primitive.name == "shard_map" else 1
        for part in _jaxprs_in(equation.params):
            yield from (devices * size for size in _kept(part))


def _stacks(of_loop: Sequence[Any], of_body: Sequence[Any]) -> list[Any]:
    """The inputs or outputs of a loop that it goes through, of which its body sees one slice at a time."""
    return [whole for whole, part in zip(of_loop, of_body, strict=True) if whole.aval.ndim == part.aval.ndim + 1]


def _bytes(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize
