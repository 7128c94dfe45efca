"""What a compiled program would take on a machine: bounds by arithmetic, memory and links. Pure arithmetic, no JAX.

Bounds, not predictions: no program is faster than its arithmetic at the published peak, than reading and writing its
state once at the published rate of the memory, or than sending what its collectives must at the published rate of the
links. What they leave out makes real steps slower: kernels below their peak, activations that go through memory,
latencies, the host, and whatever does not overlap.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from fftlm_jax.plan.machines import Machine
from fftlm_jax.plan.program_text import Collective, dimensions

GRADIENTS, PARAMETERS, OPTIMIZER, ACTIVATIONS = "gradients", "parameters", "optimizer", "activations"
# Bytes that a device must send, in sizes of what a collective moves and with n devices.
_SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
# What float32 products run at on GPUs, as a part of the bfloat16 peak: they are TF32. On TPUs they are one bfloat16
# pass unless a precision is asked for.
_TF32_PART = 0.5


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one purpose, kind and place, together: how many run in a step, and the bytes they move."""

    purpose: str
    kind: str
    place: str
    times: int
    moved: int


@dataclasses.dataclass(frozen=True)
class StepBound:
    """Seconds that a step takes at least, and what limits it. `utilisation` is the MFU that this would be."""

    arithmetic: float
    memory: float
    links: float
    utilisation: float

    @property
    def seconds(self) -> float:
        """With everything overlapped."""
        return max(self.arithmetic, self.memory, self.links)

    @property
    def seconds_apart(self) -> float:
        """With nothing overlapped."""
        return self.arithmetic + self.memory + self.links


def place_of(collective: Collective) -> str:
    """The part of the step that a collective belongs to: forward, backward, optimizer, or its end."""
    name = collective.op_name
    if "/optimizer/" in name:
        return "optimizer"
    if "transpose(" in name:
        return "backward"
    return "forward" if "jvp(" in name else "end of step"


def purpose_of(collective: Collective, parameters: Sequence[Sequence[int]]) -> str:
    """What a collective is for.

    Args:
        collective: of a training step.
        parameters: the shapes of all parameters. What is gathered and has the last two axes of none, nor is a part of
            one, counts as activations: they should stay where they are.
    """
    if place_of(collective) == "optimizer":
        return OPTIMIZER
    if collective.kind in ("all-reduce", "reduce-scatter", "collective-permute"):
        return GRADIENTS
    axes = tuple(n for n in dimensions(collective.shape) if n > 1)
    for shape in parameters:
        known = tuple(n for n in shape if n > 1)
        if sorted(axes[-2:]) == sorted(known[-2:]) or set(axes) <= set(known):
            return PARAMETERS
        # Compilers for TPU may gather a matrix as its parts, with an axis of their number.
        is_constraint = collective.op_name.endswith("sharding_constraint")
        if is_constraint and math.prod(axes) in (math.prod(shape), math.prod(shape[1:])):
            return PARAMETERS
    return ACTIVATIONS


def traffic_of(collectives: Iterable[Collective], parameters: Sequence[Sequence[int]]) -> list[Traffic]:
    """Collectives added up by purpose, kind and place, the largest first."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    for collective in collectives:
        total = sums.setdefault((purpose_of(collective, parameters), collective.kind, place_of(collective)), [0, 0])
        total[0] += collective.times
        total[1] += collective.moved
    return sorted((Traffic(*key, *total) for key, total in sums.items()), key=lambda traffic: -traffic.moved)


def bound_of(
    machine: Machine,
    *,
    flops: float,
    useful_flops: float,
    state_bytes: int,
    collectives: Iterable[Collective],
    is_float32: bool,
) -> StepBound:
    """The least time of a step.

    Args:
        machine: that runs it.
        flops: of the program, on all devices together.
        useful_flops: what the mathematics of the model takes, for the utilisation.
        state_bytes: that each device reads and writes once: arguments and outputs.
        collectives: of the program.
        is_float32: whether products have float32 operands.
    """
    chip, devices = machine.chip, machine.devices
    peak = chip.flops * (_TF32_PART if is_float32 and chip.platform == "gpu" else 1.0)
    sent = across = 0.0
    for collective in collectives:
        sent += collective.moved * _SENT[collective.kind](devices) if devices > 1 else 0.0
        if machine.hosts > 1:  # Each host must receive what the others have, through the adapters of all its GPUs.
            across += collective.moved * _SENT[collective.kind](machine.hosts) * machine.hosts / devices
    network = chip.network if chip.network and machine.hosts > 1 else 0.0
    links = max(sent / (chip.links + network), across / network if network else 0.0)
    bound = StepBound(flops / (devices * peak), state_bytes / chip.memory_rate, links, 0.0)
    utilisation = useful_flops / (bound.seconds * devices * chip.flops) if bound.seconds else 0.0
    return dataclasses.replace(bound, utilisation=utilisation)
