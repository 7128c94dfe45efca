"""Rows 3, 7 and 8 with processes that are really killed, and that a misspelt fault cannot pass for none."""

import json
import re
import signal

import pytest

from fftlm_jax import faults
from fftlm_jax.training.manifest import step_numbers
from tests.faults.runs import assert_equal_runs
from tests.tiny import run_main

pytestmark = pytest.mark.timeout(600)

CONFIG_FILE = """
from tests.faults.runs import short_values

def get_config():
    return short_values()
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs main.py in a folder with faults; returns the ended process."""
    file = tmp_path_factory.mktemp("config") / "short_run.py"
    file.write_text(CONFIG_FILE)

    def start(workdir, fault=""):
        return run_main(f"--config={file}", f"--workdir={workdir}", env={faults.VARIABLE: fault}, timeout=500)

    return start


@pytest.fixture(scope="module")
def reference(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference") / "run"
    done = command(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_killed_in_a_save_and_stopped_twice_in_another_it_is_the_same_run(command, reference, tmp_path):
    """SIGKILL before the manifest of step 10; then Ctrl-C in step 12 and another in the save that the first asked for,
    which leaves at once, without that save."""
    killed = command(tmp_path, "kill@before_manifest:10")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    twice = command(tmp_path, "int@mid_step:12,int@before_arrays:12")
    assert twice.returncode == -signal.SIGINT and "Traceback" not in twice.stderr
    assert step_numbers(tmp_path / "checkpoints") == [5, 10]
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 10" in done.stdout
    assert_equal_runs(tmp_path, reference)


def test_a_misspelt_fault_is_refused(command, tmp_path):
    done = command(tmp_path / "run", "kill@before_manifes:10")
    assert done.returncode == 1 and re.search("UsageError: FFTLM_JAX_FAULT: 'kill@before_manifes:10'", done.stderr)
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
