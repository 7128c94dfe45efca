"""The command `fftlm`: one word for each thing that can be done with a run.

    fftlm train --config=configs/quickstart.py
    fftlm evaluate runs/quickstart
    fftlm generate --help

`python main.py` is `fftlm train`.
"""

import importlib
import sys

from fftlm_jax.config.limits import nearest
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.process import run_command
from fftlm_jax.runtime.streams import print_error, print_line
from fftlm_jax.runtime.untrusted import printable

# Name: (module whose `main` takes the arguments, what it does).
COMMANDS = {
    "train": ("fftlm_jax.cli.train", "train a run, or go on training it"),
    "generate": ("fftlm_jax.generation.terminal", "continue a prompt with a trained run"),
    "evaluate": ("fftlm_jax.evaluation.evaluate_run", "score a run on held-out text, with tables and a picture"),
    "plan": ("fftlm_jax.plan.plan_run", "say what a run would need on a machine that is not there"),
    "verify": ("fftlm_jax.checkpoints.verification", "check a run's checkpoints and print the hash of its state"),
    "doctor": ("fftlm_jax.doctor.examine", "tell whether a run, or a text log, trains well"),
    "export": ("fftlm_jax.export.export_run", "write a run's model into a folder to give away"),
    "compare": ("fftlm_jax.recording.compare_runs", "draw runs side by side"),
    "download": ("fftlm_jax.data.download", "fetch a public text such as enwik8"),
    "raft-report": ("fftlm_jax.raft.report", "write the report of a fine-tuning run"),
    "raft-advise": ("fftlm_jax.raft.advise", "give advice after each cycle of a fine-tuning run"),
    "lr-schedule": ("fftlm_jax.raft.schedule_calculator", "print learning rates of fine-tuning cycles"),
}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("--help", "-h", "help"):
        lines = (f"    {command:12} {what}" for command, (_, what) in COMMANDS.items())
        return run_command(lambda: print_line("\n".join((__doc__ or "", *lines)), sys.stdout))
    if name not in COMMANDS:
        close = nearest(name, COMMANDS)
        print_error(f"UsageError: fftlm has no command {printable(name)!r}{close}; see fftlm --help.")
        return UsageError.exit_code
    config_file = next((word for word in rest if word.endswith(".py") and not word.startswith("-")), None)
    has_target = any(word.startswith("--target") for word in rest)
    if name == "plan" and config_file and has_target:  # The train command reads config files and their overrides.
        rest = [f"--config={config_file}", "--dry_run", *(word for word in rest if word != config_file)]
        name = "train"
    try:
        module = importlib.import_module(COMMANDS[name][0])
    except KeyboardInterrupt:  # It takes seconds.
        return 130
    except (OSError, ValueError) as error:  # Of libraries, whose environment variables or folders cannot be used.
        print_error(f"UsageError: fftlm {name} cannot be loaded: {printable(str(error))}.")
        return UsageError.exit_code
    if name == "train":
        return module.run_as_program([f"fftlm {name}", *rest])
    return module.main(rest)
