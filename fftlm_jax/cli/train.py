"""Trains a run: `python main.py` and `fftlm train`.

    fftlm train --config=configs/quickstart.py --workdir=runs/quickstart

The same command again resumes. Any key can be overridden: --config.lr.base=1e-4 (keys: configs/aligned.py). Writes into
the run directory alone.
"""

import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from fftlm_jax.runtime import matrix_units, process, streams
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.paths import local_path
from fftlm_jax.runtime.untrusted import printable, shown

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, one of configs/*.py.", lock_config=True)
# The parser's own messages are many lines and name its files; it has no place for others.
_CONFIG_PARSER = flags.FLAGS["config"].parser
_run_config_file = _CONFIG_PARSER.parse
_CONFIG_PARSER.parse = lambda file: _config_of(file)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default runs/<config name>.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Validate, compile, report sizes and costs; write nothing.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Move an existing run directory aside and start afresh.")
_TARGET = flags.DEFINE_string("target", None, "With --dry_run: plan the run for this machine, such as v5e-4 or h100-8.")
_ADVISE = flags.DEFINE_bool("advise", False, "With --target: also try larger batches, or what would make it fit.")
_OUT = flags.DEFINE_string("out", None, "With --target: folder for plan.json and plan.png.")
_OPTIONS = (_WORKDIR, _DRY_RUN, _OVERWRITE, _TARGET, _ADVISE, _OUT)


def run_as_program(argv: list[str] | None = None) -> int:
    """Parses a command line, of this process by default, and trains; returns the exit code."""
    if argv is not None:
        sys.argv = argv  # Where ml_collections looks for overrides.
    streams.prepare_streams()
    process.import_from_here()  # Config files import each other.
    process.keep_freed_blocks(os.environ)
    matrix_units.set_cpu_flags(os.environ)
    try:
        with process.warnings_shown():
            app.run(main, flags_parser=parse_flags)  # Always ends by SystemExit.
    except KeyboardInterrupt:
        return 130
    except SystemExit as ended:
        if isinstance(ended.code, str):
            streams.print_error(ended.code)
            return 1
        return ended.code or 0


def main(arguments: list[str]) -> int:
    """Runs a command line that is parsed, and returns the exit code of `fftlm_jax.runtime.errors`."""
    return process.run_command(lambda: _train(arguments))


def _train(arguments: list[str]) -> int | None:
    from fftlm_jax.config.reading import read_config
    from fftlm_jax.runtime import compile_cache, faults

    faults.arm(os.environ.get(faults.VARIABLE, ""))
    if len(arguments) > 1:
        raise UsageError(f"unexpected argument {arguments[1]!r}: options are written --config.key=value.")
    if _CONFIG.value is None:
        raise UsageError("--config is missing: pass a config file, for example --config=configs/quickstart.py.")
    name = Path(flags.FLAGS["config"].config_filename.split(":")[0]).stem
    workdir = f"runs/{name}" if _WORKDIR.value is None else local_path(_WORKDIR.value, "--workdir")
    if _TARGET.value is not None:
        if not _DRY_RUN.value:
            raise UsageError("--target plans a run and trains nothing; add --dry_run.")
        from fftlm_jax.plan.machines import prepare
        from fftlm_jax.plan.plan_run import plan_run

        machine = prepare(_TARGET.value, os.environ)
        out = None if _OUT.value is None else Path(local_path(_OUT.value, "--out"))
        fits = plan_run(_CONFIG.value, machine, advise=_ADVISE.value, out=out)
        return 0 if fits else UsageError.exit_code
    if _ADVISE.value or _OUT.value is not None:
        raise UsageError("--advise and --out belong to a plan; add --dry_run --target=MACHINE.")
    config = read_config(
        _CONFIG.value, keep_auto=True
    )  # Before jax is imported: a typing error should not wait for that.
    try:
        import jax  # noqa: F401
    except ValueError as error:  # Of a variable that jax reads.
        raise UsageError(f"jax cannot be loaded: {error}; correct or unset the environment variable.") from None
    compile_cache.use(config.compile_cache, os.environ)
    if config.task == "raft":
        from fftlm_jax.raft.run_cycles import dry_run, run
    else:
        from fftlm_jax.plan.dry_run import dry_run
        from fftlm_jax.training.loop import run
    if _DRY_RUN.value:
        dry_run(_CONFIG.value)
        return None
    run(_CONFIG.value, workdir, overwrite=_OVERWRITE.value)
    try:
        sys.stdout.flush()
    except OSError:  # What a full disk did not take is in run.log; the run itself is saved.
        streams.discard_output()
    return None


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; whatever is wrong with it, or a missing config file, is said in one line."""
    if {"--help", "-h", "--helpshort", "--helpfull"} & set(arguments):
        lines = [__doc__ or "", "--config=FILE: a config file, one of configs/*.py"]
        lines += [f"--{option.name}: {flags.FLAGS[option.name].help}" for option in _OPTIONS]
        sys.exit(process.run_command(lambda: streams.print_line("\n".join(lines), sys.stdout)))
    try:
        arguments = _last_of_each([_with_home(argument) for argument in arguments])
        for argument in arguments:
            file = argument.partition("--config=")[2].split(":")[0]
            if file and not Path(file).is_file():
                raise OSError(f"the config file {file} does not exist")
        return flags.FLAGS(arguments)
    except UsageError as error:
        sys.exit(f"UsageError: {error}")
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
        what = "no such key: " if isinstance(error, AttributeError) else ""
        sys.exit(f"UsageError: {what}{text} (keys: configs/aligned.py).")


def _config_of(file: str) -> Any:
    """What the get_config of a config file returns.

    Raises:
        UsageError: with the place, where it is no Python or raises; and where it returns no config.
    """
    logging.set_verbosity(logging.ERROR)  # What is wrong is said here, once.
    try:
        config = _run_config_file(file)
        is_config = hasattr(config, "items")  # Of a file that could not be read, this raises.
    except Exception as error:
        if "parsing config file" in str(error) or "earlier failure to load" in str(error):
            error = error.__cause__ or error.__context__ or error  # Of which ml_collections makes another.
        told = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        raise UsageError(f"the config file cannot be run: {told} ({_place_of(error, file)}).") from None
    if not is_config:
        raise UsageError(f"get_config() in {file} returns {shown(config)}; return a ConfigDict, as configs/aligned.py.")
    return config


def _place_of(error: Exception, file: str) -> str:
    """Where a config file went wrong, which is not where its reader noticed it."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    places = [
        f"{f.filename}, line {f.lineno}" for f in frames if not re.search(r"ml_collections|cli.train", f.filename)
    ]
    return places[-1] if places else file


def _with_home(argument: str) -> str:
    """An option --config=~/file with the home folder, which no shell expands there."""
    option, sign, file = argument.partition("=")
    return f"{option}={local_path(file, option)}" if option == "--config" and file.startswith("~") else argument


def _last_of_each(arguments: list[str]) -> list[str]:
    """Arguments in which no override is repeated: the last one wins. Of tuples, ml_collections would append the later.

    Raises:
        UsageError: for a repeated override that is not written with an equals sign.
    """
    names = [argument.partition("=")[0].lstrip("-") for argument in arguments]
    kept = []
    for place, (name, argument) in enumerate(zip(names, arguments)):
        if name.startswith("config.") and argument.startswith("-") and name in names[place + 1 :]:
            if "=" not in argument:
                raise UsageError(f"{argument} is given twice; give it once, as {argument}=VALUE.")
            continue
        kept.append(argument)
    return kept
