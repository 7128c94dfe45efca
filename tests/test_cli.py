"""The command `fftlm`: every command, and every one under `experiments/`, helps and refuses alike."""

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys

import pytest

from fftlm_jax.cli import COMMANDS, main
from tests.tiny import ROOT

DOOR = "import sys; from fftlm_jax.cli import main; sys.exit(main())"  # As the script `fftlm` does.
HAS_TORCH = importlib.util.find_spec("torch") is not None
OF_EXPERIMENTS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if "__main__" in path.read_text() and (HAS_TORCH or "import torch" not in path.read_text())
)


@pytest.fixture
def outcome(capsys):
    def call(function, arguments):
        try:
            code = function(arguments)
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return call


def main_of(name):
    module = importlib.import_module(f"experiments.{name}")
    if not hasattr(module, "main") or not inspect.signature(module.main).parameters:
        pytest.skip("a child of another command, and no command of its own")
    return module.main


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_every_command_helps_and_refuses_an_unknown_option_in_one_line(outcome, name):
    code, out, err = outcome(main, [name, "--help"])
    assert code == 0 and f"usage: fftlm {name}" in out and err == ""
    code, out, err = outcome(main, [name, "RUN", "--no_such_option"])
    assert code == 1 and out == "" and re.fullmatch(rf"UsageError: .*\(see fftlm {name} --help\)\.\n", err)


@pytest.mark.parametrize("name", OF_EXPERIMENTS)
def test_so_does_every_experiment(outcome, name):
    command = main_of(name)
    code, out, err = outcome(command, ["--help"])
    assert code == 0 and out.startswith("usage: ") and err == ""
    code, out, err = outcome(command, ["--no_such_option"])
    assert code == 1 and out == "" and err.startswith("UsageError: ") and err.count("\n") == 1


def test_the_command_lists_its_commands_and_knows_no_others(outcome):
    for arguments in ([], ["--help"]):
        code, out, _ = outcome(main, arguments)
        assert code == 0 and all(f"    {name} " in out for name in COMMANDS)
    code, out, err = outcome(main, ["evalute"])
    assert (code, out) == (1, "") and "did you mean 'evaluate'?" in err


@pytest.mark.parametrize("arguments", (["verify"], ["verify", "a", "--workdir=b"]))
def test_a_run_is_named_once(outcome, arguments):
    code, out, err = outcome(main, arguments)
    assert (code, out) == (1, "") and "RUN: name one run directory" in err


def test_a_run_may_be_named_by_either_form(outcome, tmp_path):
    found = [outcome(main, ["verify", *form]) for form in ([str(tmp_path)], [f"--workdir={tmp_path}"])]
    assert found[0] == found[1] and found[0][0] == 1 and "holds no checkpoints" in found[0][2]


def test_train_is_main_py():
    """In processes of their own, as users start them; the installed script has not the current folder on its path."""
    doors = ([sys.executable, "main.py"], [sys.executable, "-P", "-c", DOOR, "train"])
    for arguments, code in ((["--help"], 0), (["--config=configs/tiny.py", "--config.lr.bas=1"], 1)):
        done = [subprocess.run([*d, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60) for d in doors]
        assert [d.returncode for d in done] == [code, code]
        assert done[0].stdout == done[1].stdout and done[0].stderr == done[1].stderr != done[0].stdout


def test_a_plan_of_a_config_file_needs_a_machine(capsys):
    """Without one it would be the dry run of the machine at hand, which nobody asked for."""
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "configs/quickstart.py"])
    assert stopped.value.code == 1 and "--target" in capsys.readouterr().err
