"""Plans a run for a machine that is not there, before anybody waits for it in a queue.

    fftlm plan configs/aligned.py --target=v5e-4 --config.model.dtype=bfloat16
    fftlm plan runs/mine --target=h100-2x8 --advise --out=plans/mine

RUN_OR_CONFIG is a run directory or a config file, whose keys can be overridden. The run's own programs are compiled for
the machine by the compiler that the machine would use; nothing runs, and no accelerator is needed. It takes a minute or
more for a TPU the first time. With --out, plan.json and plan.png are written there; nothing else is.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fftlm_jax.plan import machines
from fftlm_jax.runtime.errors import RunError, SaveError, UsageError
from fftlm_jax.runtime.process import CommandParser, path_option, run_command
from fftlm_jax.runtime.streams import print_error


def plan_run(
    values: Mapping[str, Any], machine: machines.Machine, *, advise: bool = False, out: Path | None = None
) -> bool:
    """Plans the run of a config for a machine and prints the plan; returns whether it fits.

    Args:
        values: config with every key.
        machine: from `machines.prepare`.
        advise: also try what could be changed, by compiling it.
        out: folder for `plan.json` and `plan.png`.

    Raises:
        RunError: for a config that cannot be used, or a folder that cannot be written.
    """
    from fftlm_jax.plan import report

    plan = _plan(values, machine, advise)
    print(report.as_text(plan))
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "plan.json").write_text(report.as_json(plan))
            report.draw(plan, out / "plan.png")
        except OSError as error:
            raise SaveError(f"--out: {out}: the plan cannot be written there ({error}); choose a folder.") from error
    return plan.fits


def _plan(values: Mapping[str, Any], machine: machines.Machine, advise: bool) -> Any:
    import jax

    from fftlm_jax.config.reading import read_config, to_dict
    from fftlm_jax.runtime.platform import tracing_for
    from fftlm_jax.training.run_parts import config_of

    # Of no use to programs that cannot be loaded, and it would write one for each.
    jax.config.update("jax_enable_compilation_cache", False)
    with tracing_for(machine.chip.platform):  # Which decides on types that are "auto".
        config = read_config(values, with_data=False)
        if config.init.checkpoint:  # Its architecture is that of another run.
            config = config_of(values)
    devices = machines.devices_of(machine)
    plan = _plan_config(config, machine, devices)
    if not advise:
        return plan
    lines = []
    for what, overrides in _changes(plan, to_dict(config)):
        lines.append(_tried(what, overrides, to_dict(config), machine, devices))
        print_error(lines[-1])
    return dataclasses.replace(plan, advice=tuple(lines))


def _plan_config(config: Any, machine: machines.Machine, devices: list[Any], *, only_last_step: bool = False) -> Any:
    import jax

    from fftlm_jax.model import build
    from fftlm_jax.model.parameters import flops_per_byte
    from fftlm_jax.plan.estimate import bound_of, traffic_of
    from fftlm_jax.plan.programs import programs_of, state_bytes
    from fftlm_jax.plan.report import Plan
    from fftlm_jax.plan.traces import bytes_per_step, mesh_of

    params = build(config.model)[1]
    mesh = mesh_of(config, devices)
    used = machines.part_of(machine, 1 if mesh is None else mesh.size)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    programs = programs_of(config, machine, devices, print_error, only_last_step=only_last_step)
    bounds, traffic, sizes = {}, {}, {}
    for program in programs:
        found = program.findings
        if program.kind != "step" or found.refusal:
            continue
        sizes[program.name] = bytes_per_step(config, program.micro_batches)
        bounds[program.name] = bound_of(
            used,
            flops=found.flops,
            useful_flops=flops_per_byte(config, params) * sizes[program.name],
            state_bytes=found.arguments + found.outputs,
            collectives=found.collectives,
            is_float32=config.model.dtype == "float32",
        )
        traffic[program.name] = tuple(traffic_of(found.collectives, shapes))
    return Plan(
        target=machine.target,
        machine=machine,
        mesh=(1, 1) if mesh is None else (mesh.shape["data"], mesh.shape["fsdp"]),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        state=state_bytes(config, devices),
        programs=tuple(programs),
        bounds=bounds,
        traffic=traffic,
        bytes_per_step=sizes,
        days=_days(config, programs, bounds),
    )


def _days(config: Any, programs: list[Any], bounds: Mapping[str, Any]) -> float | None:
    """Days of all steps at their bound, the dearest rung of each size of batch counted.

    None where a step does not fit, and for fine-tuning, whose steps depend on what it samples.
    """
    if config.task == "raft":
        return None
    from fftlm_jax.training.batches import batch_stages

    stages = batch_stages(config)
    slowest: dict[int, float] = {}
    for program in programs:
        if program.name in bounds:
            slowest[program.micro_batches] = max(slowest.get(program.micro_batches, 0), bounds[program.name].seconds)
    counts = [stages.accum_steps * multiple for multiple in stages.multiples]
    if not all(count in slowest for count in counts):
        return None
    return sum(slowest[count] * config.total_steps / len(counts) for count in counts) / 86_400


def _changes(plan: Any, values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What could be changed of a run, the mildest first: (in words, dotted overrides).

    A run that fits is tried at larger batches, one that does not is made smaller.
    """
    train, mesh, devices = values["train"], values["mesh"], plan.machine.devices
    batch, accum = train["batch_size"], train["accum_steps"]
    if values["task"] == "raft":
        return
    if plan.fits:
        for factor in (2, 4, 8, 16, 32, 64):
            yield f"train.batch_size={batch * factor}", {"train.batch_size": batch * factor}
        return
    if values["model"]["dtype"] == "float32" and values["model"]["conv_method"] != "fft":
        yield "model.dtype=bfloat16", {"model.dtype": "bfloat16"}
    if values["model"]["remat"] == "none":
        yield "model.remat=blocks", {"model.remat": "blocks"}
    if batch > devices:
        parts = batch // devices
        yield (
            f"train.batch_size={devices} train.accum_steps={accum * parts}",
            {"train.batch_size": devices, "train.accum_steps": accum * parts},
        )
    if mesh["fsdp"] < devices:
        whole = {"mesh.fsdp": devices, "mesh.data": 1}
        yield f"mesh.fsdp={devices} mesh.data=1", whole
        if values["model"]["remat"] == "none":
            yield f"mesh.fsdp={devices} mesh.data=1 model.remat=blocks", {**whole, "model.remat": "blocks"}


def _tried(
    what: str, overrides: Mapping[str, Any], values: dict[str, Any], machine: machines.Machine, devices: list[Any]
) -> str:
    """What became of a change, in a line."""
    from fftlm_jax.config.reading import read_config
    from fftlm_jax.plan.report import gib, seconds_in_words

    changed = {name: dict(part) if isinstance(part, dict) else part for name, part in values.items()}
    for key, value in overrides.items():
        section, name = key.split(".")
        changed[section][name] = value
    try:
        plan = _plan_config(read_config(changed, with_data=False), machine, devices, only_last_step=True)
    except RunError as error:
        return f"tried {what}: refused ({error})"
    if not plan.fits:
        shortage = next(s for s in (plan.shortage(p.findings) for p in plan.programs) if s)
        return f"tried {what}: does not fit ({shortage})"
    peak = max(program.findings.peak for program in plan.programs)
    speed = min(plan.bytes_per_step[name] / bound.seconds for name, bound in plan.bounds.items())
    slowest = max(bound.seconds for bound in plan.bounds.values())
    return (
        f"tried {what}: FITS with {gib(peak)} a device; a step takes at least {seconds_in_words(slowest)}, at most "
        f"{speed:,.0f} bytes of text a second"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0 if the run fits, and else an exit code of `fftlm_jax.runtime.errors`."""
    parser = CommandParser("fftlm plan", __doc__)
    parser.add_run("run directory, or a config file with overrides such as --config.model.remat=blocks")
    parser.add_argument("--target", required=True, help=f"machine to plan for, such as {', '.join(machines.EXAMPLES)}")
    parser.add_argument("--advise", action="store_true", help="also try larger batches, or what would make it fit")
    parser.add_argument("--out", type=path_option, help="folder for plan.json and plan.png")
    args = parser.parse_args(arguments)
    return run_command(lambda: 0 if _plan_saved(args) else UsageError.exit_code)


def _plan_saved(args: Any) -> bool:
    machine = machines.prepare(args.target, os.environ)
    from fftlm_jax.checkpoints.saved_run import open_config
    from fftlm_jax.config.reading import to_dict

    _, config = open_config(args.workdir)
    return plan_run(to_dict(config), machine, advise=args.advise, out=args.out)
