"""Rows 3, 7 and 8 with processes that are really killed, and that a misspelt fault cannot pass for none."""

import json
import signal

import pytest

from fftlm_jax.checkpoints.saved_step import step_numbers
from fftlm_jax.runtime import faults
from fftlm_jax.training import run
from tests.faults.runs import assert_equal_runs, short_values
from tests.tiny import main_here, run_main, write_config

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs main.py in a folder with faults; returns the ended process."""
    config = write_config(tmp_path_factory.mktemp("config") / "short_run.py", "tests.faults.runs.short_values")

    def start(workdir, fault=""):
        return run_main(config, f"--workdir={workdir}", env={faults.VARIABLE: fault}, timeout=500)

    return start


def test_killed_in_a_save_and_stopped_twice_in_another_it_is_the_same_run(command, reference, tmp_path, capsys):
    """SIGKILL before the manifest of step 10; then Ctrl-C in step 12 and another in the save that the first asked for,
    which leaves at once, without that save. This process finishes what those left, and made what it must equal."""
    killed = command(tmp_path, "kill@before_manifest:10")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    twice = command(tmp_path, "int@mid_step:12,int@before_arrays:12")
    assert twice.returncode == -signal.SIGINT and "Traceback" not in twice.stderr
    assert "resuming from step 5" in twice.stdout
    assert step_numbers(tmp_path / "checkpoints") == [5, 10]
    run(short_values(), tmp_path)
    assert "resuming from step 10" in capsys.readouterr().out
    assert_equal_runs(tmp_path, reference)


def test_a_misspelt_fault_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(faults.VARIABLE, "kill@before_manifes:10")
    assert main_here("--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}") == 1
    assert "UsageError: FFTLM_JAX_FAULT: 'kill@before_manifes:10'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.torture
@pytest.mark.parametrize("action,code", (("kill", -signal.SIGKILL), ("term", 143)))
@pytest.mark.parametrize(
    "place",
    (
        *("before_arrays:10", "after_arrays:10", "before_manifest:5", "after_manifest:10", "during_deletion:5"),
        *(f"mid_step:{step}" for step in (1, 6, 7, 13, 19)),
        *("before_raise_save:6", "before_raise_save:12", "in_compile:8", "in_compile:17"),
    ),
)
def test_killed_or_terminated_anywhere(command, reference, tmp_path, place, action, code):
    died = command(tmp_path, f"{action}@{place}")
    assert died.returncode == code, died.stderr
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(tmp_path, reference)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
