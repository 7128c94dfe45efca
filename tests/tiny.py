"""Tiny configs and child processes for the tests."""

import os
import pathlib
import random
import subprocess
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from configs import aligned
from fftlm_jax.checkpoints.saved_step import manifest_fault, read_arrays, read_host, step_numbers
from fftlm_jax.checkpoints.verification import state_hash
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config

ROOT = pathlib.Path(__file__).resolve().parent.parent

# For the config file of a child whose pictures nobody looks at: drawing them would take it seconds. It does nothing in
# the process of the tests, which may read such a file too.
NO_PICTURES = """
import sys, types

of_children = (("recording.curves", "draw_curves"), ("raft.cycles_figure", "draw_cycles"))
for module, name in () if "pytest" in sys.modules else of_children:
    sys.modules[f"fftlm_jax.{module}"] = types.SimpleNamespace(**{name: lambda found, file, title: file.touch()})
"""


def write_config(file: pathlib.Path, function: str) -> str:
    """A config file of a child: what `function` (module.name) returns, without pictures. Returns its option."""
    module, _, name = function.rpartition(".")
    file.write_text(f"{NO_PICTURES}\nfrom {module} import {name} as get_config\n")
    return f"--config={file}"


def tiny_values(**overrides: Any) -> ConfigDict:
    """A config that compiles and trains in seconds, with one layer; overrides are dotted keys with `__` for the dot."""
    c = aligned.get_config()
    c.model.update(seq_len=32, kernel_len=12, d_model=16, n_layers=1, conv_heads=4, chunk=4, dtype="float32")
    c.curriculum.update(ladder=(4, 8, "full"), min_epoch=1, check_every=3, window=4, threshold=0.5)
    c.lr.update(base=1e-2, stages=(("rest", 1.0, 0.1),))
    c.train.update(batch_size=2, accum_steps=2, steps_per_epoch=4, epochs=5, log_every=2)
    c.eval.update(every=7, batch_size=4, max_bytes=512)
    c.checkpoint.update(every=5)
    c.sample.update(bytes=8)
    for dotted, value in overrides.items():
        section, _, key = dotted.rpartition("__")
        target = c[section] if section else c
        target[key] = value
    return c


def tiny(**overrides: Any) -> Config:
    """The validated form of `tiny_values`."""
    return read_config(tiny_values(**overrides))


def write_words(file: pathlib.Path) -> None:
    """A corpus of 3000 random words out of 40, always the same."""
    words = [bytes(random.Random(i).choices(b"abcdefgh ", k=6)) for i in range(40)]
    file.write_bytes(b" ".join(random.Random(0).choices(words, k=3000)))


def hash_of(workdir: pathlib.Path, step: int | None = None) -> str:
    """Hash of the newest state, or of a step's; every step must be whole."""
    checkpoints = workdir / "checkpoints"
    steps = step_numbers(checkpoints)
    assert {s: manifest_fault(checkpoints / str(s)) for s in steps} == dict.fromkeys(steps), "all are whole"
    folder = checkpoints / str(step or steps[-1])
    return state_hash(read_arrays(folder), read_host(folder)["controller"])


def main_here(*arguments: str) -> int:
    """Runs main.py's own entry point in this process and returns its exit code; what it says is printed as there."""
    from fftlm_jax.cli import train  # Late: a child's config file imports this module, and flags are defined once.

    _forget_flags()
    command_line = ["main.py", *arguments]
    before, sys.argv = sys.argv, command_line  # Where overrides are looked for.
    try:
        return train.main(train.parse_flags(command_line))
    except SystemExit as stopped:  # As absl's app.run would end.
        print(stopped.code, file=sys.stderr)
        return 1
    finally:
        sys.argv = before
        _forget_flags()


def _forget_flags() -> None:
    """As in a new process: every override of a config is a flag of its own."""
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)


def run_main(
    *arguments: str, env: dict[str, str | None] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess:
    """Runs main.py to its end. `env` adds to the environment; a variable that is None there is taken away."""
    return subprocess.run(main_command(*arguments), **_process_options(env), timeout=timeout, check=False)


def start_main(*arguments: str, env: dict[str, str | None] | None = None) -> subprocess.Popen:
    """Starts main.py and returns at once."""
    return subprocess.Popen(main_command(*arguments), **_process_options(env))


def main_command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), *arguments]


def _process_options(env: dict[str, str | None] | None) -> dict[str, Any]:
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", **(env or {})}
    environment = {name: value for name, value in variables.items() if value is not None}
    return {"cwd": ROOT, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
