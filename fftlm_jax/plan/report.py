"""A plan as a table, as JSON and as a picture."""

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

from fftlm_jax.plan.estimate import StepBound, Traffic
from fftlm_jax.plan.machines import Machine
from fftlm_jax.plan.programs import Findings, Program, StateBytes

_ASSUMPTIONS = (
    "A bound, not a prediction: arithmetic at the published peak, state read and written once at the published rate of "
    "the memory, collectives at that of the links, all overlapped. Kernels below their peak, activations in memory, "
    "latencies, the host, evaluations and saves are left out. No program was run."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs on a machine. `bounds` and `traffic` go with those of `programs` that are training steps.

    `state` is None for fine-tuning. `days` is the bound of the whole training; None where no step fits. `advice` is
    what was tried, a line each.
    """

    target: str
    machine: Machine
    mesh: tuple[int, int]
    parameters: int
    state: StateBytes | None
    programs: tuple[Program, ...]
    bounds: dict[str, StepBound]
    traffic: dict[str, tuple[Traffic, ...]]
    bytes_per_step: dict[str, int]
    days: float | None
    advice: tuple[str, ...] = ()

    @property
    def limit(self) -> int:
        """Bytes that a program gets of a device's memory."""
        return int(self.machine.chip.memory * self.machine.chip.usable)

    def shortage(self, findings: Findings) -> str:
        """Why a program does not fit, and by how much; "" if it does."""
        if findings.refusal:
            return findings.refusal
        # Of a TPU's memory its compiler knows more than a sum does, and it has accepted the program.
        if self.machine.chip.platform != "tpu" and findings.peak > self.limit:
            return (
                f"needs {gib(findings.peak)}, {gib(findings.peak - self.limit)} more than the {gib(self.limit)} it gets"
            )
        return ""

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return not any(self.shortage(program.findings) for program in self.programs)


def gib(size: float) -> str:
    """Bytes in words, in the unit that suits them."""
    if size >= 2**30:
        return f"{size / 2**30:,.2f} GiB"
    return f"{size / 2**20:,.1f} MiB" if size >= 2**18 else f"{size / 2**10:,.1f} KiB"


def seconds_in_words(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds >= 1e-3:
        return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e6:.1f} µs"


def as_text(plan: Plan) -> str:
    """The plan as lines for a terminal."""
    machine, chip = plan.machine, plan.machine.chip
    lines = [
        f"plan for {plan.target}: {machine.devices} x {chip.name} ({'x'.join(map(str, machine.shape))}), "
        f"mesh data {plan.mesh[0]} x fsdp {plan.mesh[1]}; {plan.parameters:,} parameters",
        f"fits: {'yes' if plan.fits else 'NO'}; a program gets {gib(plan.limit)} of a device's {gib(chip.memory)}",
    ]
    for program in plan.programs:
        lines += ["", *_program_lines(plan, program)]
    if plan.days is not None:
        lines += ["", f"the whole training takes at least {_days(plan.days)} of steps"]
    lines += ["", *plan.advice] if plan.advice else []
    return "\n".join([*lines, "", *textwrap.wrap(_ASSUMPTIONS, 120)])


def _program_lines(plan: Plan, program: Program) -> list[str]:
    found, name = program.findings, program.name
    lines = [name if len(program.stands_for) == 1 else f"{name} (and {', '.join(program.stands_for[1:])}: the same)"]
    if shortage := plan.shortage(found):
        lines.append(f"  DOES NOT FIT: {shortage}")
    if found.refusal:
        return lines
    rows = [(label, gib(size)) for label, size in memory_parts(plan, program).items() if size]
    rows.append(("together", gib(found.peak)))
    lines += _table(["  memory of a device", ""], rows)
    if found.kept:
        lines.append(f"  of the temporaries, activations kept for the backward pass, as traced: {gib(found.kept)}")
    unit, name_of_unit = (1e9, "GFLOP") if found.flops >= 1e9 else (1e6, "MFLOP")
    lines.append(f"  arithmetic: {found.flops / unit:,.1f} {name_of_unit} on all devices" + _intensity(plan, found))
    lines.append("  holds float64" if found.holds_float64 else "  no float64")
    if name in plan.traffic:
        traffic = plan.traffic[name]
        header = ["  collectives for", "kind", "place", "times", "moved"]
        moved = [(f"{t.purpose}", t.kind, t.place, f"{t.times:,}", gib(t.moved)) for t in traffic]
        lines += _table(header, moved) if traffic else ["  no collectives"]
        lines += _bound_lines(plan, name)
    return lines


def _bound_lines(plan: Plan, name: str) -> list[str]:
    bound, size = plan.bounds[name], plan.bytes_per_step[name]
    parts = {"arithmetic": bound.arithmetic, "memory": bound.memory, "links": bound.links}
    shares = ", ".join(f"{part} {seconds_in_words(value)}" for part, value in parts.items())
    return [
        f"  a step takes at least {seconds_in_words(bound.seconds)} ({shares}; "
        f"{seconds_in_words(bound.seconds_apart)} if nothing overlaps)",
        f"  at most {size / bound.seconds:,.0f} bytes of text a second, MFU at most {bound.utilisation:.0%}",
    ]


def _intensity(plan: Plan, found: Findings) -> str:
    moved = found.arguments + found.outputs
    return f", {found.flops / plan.machine.devices / moved:,.0f} FLOP per byte of state" if moved else ""


def memory_parts(plan: Plan, program: Program) -> dict[str, int]:
    """Bytes of a program on one device by kind; they add up to its peak."""
    found = program.findings
    if plan.state is None or program.kind == "decoding":
        parts = {"weights and state": found.arguments}
    else:
        parts = {"parameters": plan.state.parameters}
        if program.kind == "step":
            parts |= {"optimizer": plan.state.optimizer, "average of the weights": plan.state.average}
        parts["data and other arguments"] = found.arguments - sum(parts.values())
    parts["outputs that take new memory"] = found.outputs - found.updated_in_place
    parts["temporaries"] = found.temporaries
    if plan.machine.chip.platform == "tpu":
        parts["code"] = found.code
    return parts


def _table(header: list[str], rows: list[tuple[str, ...]]) -> list[str]:
    body = [tuple(header), *[(f"    {row[0]}", *row[1:]) for row in rows]]
    widths = [max(len(row[column]) for row in body) for column in range(len(header))]
    numeric = {column for column, title in enumerate(header) if column and title in ("", "times", "moved")}
    return [
        "  ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in body
    ]


def _days(days: float) -> str:
    if days >= 2:
        return f"{days:,.1f} days"
    if days * 1440 >= 2:
        return f"{days * 24:.1f} hours" if days * 24 >= 2 else f"{days * 1440:.1f} minutes"
    return seconds_in_words(days * 86_400)


def as_json(plan: Plan) -> str:
    """The plan as JSON: every figure of the table, in bytes, seconds and FLOPs, and every collective."""
    values: dict[str, Any] = dataclasses.asdict(plan)
    values["fits"], values["limit"] = plan.fits, plan.limit
    for program, written in zip(plan.programs, values["programs"], strict=True):
        written["shortage"] = plan.shortage(program.findings)
        written["memory"] = memory_parts(plan, program)
        written["findings"]["collectives"] = [c._asdict() for c in program.findings.collectives]
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def draw(plan: Plan, file: Path) -> None:
    """Writes the picture: memory of a device by kind for each program, and what bounds the step.

    Raises:
        OSError: if it cannot be drawn or written.
    """
    from matplotlib import pyplot as plt  # Late: a plan that is only printed needs no pictures.

    from fftlm_jax.recording.curves import replace_figure, set_title

    shown = [program for program in plan.programs if not program.findings.refusal]
    steps = [program for program in shown if program.name in plan.bounds]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.8 + 0.7 * max(2, len(shown))), width_ratios=(3, 2))
    colours = dict(zip(_KINDS, plt.get_cmap("tab10").colors, strict=False))
    largest = max((program.findings.peak for program in shown), default=0)
    unit, name = (2**30, "GiB") if largest >= 2**30 else (2**20, "MiB")
    for row, program in enumerate(shown):
        start = 0.0
        for kind, size in memory_parts(plan, program).items():
            if size:
                left.barh(row, size / unit, left=start, color=colours[kind], label=kind)
            start += size / unit
        left.text(start, row, f" {gib(program.findings.peak)}", va="center", fontsize=8)
    if plan.limit < 4 * largest:
        left.axvline(plan.limit / unit, color="black", linestyle="--", label="a program gets")
    left.margins(x=0.25)
    left.set_yticks(range(len(shown)), [program.name for program in shown])
    left.invert_yaxis()
    left.set_xlabel(f"{name} of a device, of which a program gets {gib(plan.limit)}")
    handles = dict(zip(*left.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, frameon=False, fontsize=8)
    for row, program in enumerate(steps):
        bound = plan.bounds[program.name]
        parts = (("arithmetic", bound.arithmetic), ("memory", bound.memory), ("links", bound.links))
        for place, (part, seconds) in enumerate(parts):
            colour = plt.get_cmap("Dark2").colors[place]
            right.barh(row + (place - 1) * 0.25, seconds * 1e3, 0.22, color=colour, label=part if row == 0 else None)
    right.set_yticks(range(len(steps)), [program.name.partition(",")[0] for program in steps])
    right.invert_yaxis()
    right.set_xlabel("least milliseconds of a step")
    if steps:
        right.legend(frameon=False, fontsize=8)
    set_title(figure, f"{plan.target}: {plan.parameters:,} parameters, {'fits' if plan.fits else 'DOES NOT FIT'}")
    replace_figure(figure, file, (0, 0.12, 1, 1))


_KINDS = (
    "parameters",
    "optimizer",
    "average of the weights",
    "data and other arguments",
    "weights and state",
    "outputs that take new memory",
    "temporaries",
    "code",
)
