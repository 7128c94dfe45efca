"""The command itself: a run killed and stopped in its processes ends in the journal of one that nobody disturbed."""

import json
import signal
import time

import pytest

from fftlm_jax.raft.advise import main as advise
from fftlm_jax.raft.report import main as report
from fftlm_jax.raft.run_cycles import run
from tests.raft.raft_run import journal_hashes, shipped_values
from tests.tiny import main_here, run_main, start_main, write_config


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run of this process that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("raft") / "straight"
    run(shipped_values(), workdir)
    return workdir


def test_a_process_may_end_at_any_time(straight, tmp_path):
    """SIGTERM in the supervised part, SIGKILL behind a snapshot of it.

    Deaths in every phase of a cycle are in `test_loop.py`, where they cost no process.
    """
    config = write_config(tmp_path / "tiny_raft.py", "tests.raft.raft_run.shipped_values")
    command = config, f"--workdir={tmp_path / 'run'}"
    cycle_0 = tmp_path / "run" / "cycles" / "0000"

    child = start_main(*command)
    wait_for(lambda: (cycle_0 / "plan.json").exists(), child)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 143 and "the same command goes on from there" in errors, errors

    first_snapshot = (cycle_0 / "fit.part.npz").stat().st_mtime_ns
    child = start_main(*command)
    wait_for(lambda: (cycle_0 / "fit.part.npz").stat().st_mtime_ns != first_snapshot, child)
    child.kill()
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL

    done = run_main(*command)
    assert done.returncode == 0 and "finished 2 cycles" in done.stdout, done.stderr
    assert journal_hashes(tmp_path / "run") == journal_hashes(straight)


def wait_for(condition, child):
    """Waits while the child lives."""
    deadline = time.monotonic() + 90
    while not condition() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.pictures
def test_advice_and_report_read_a_run_and_change_nothing_else(straight, capsys):
    before = journal_hashes(straight)
    (straight / "report.md").unlink()
    (straight / "cycles.png").unlink()
    assert advise([str(straight)]) == 0
    assert "cycle 2: held out" in capsys.readouterr().out
    assert advise([str(straight), "--json"]) == 0
    assert all(json.loads(line)["rule"].startswith("R") for line in capsys.readouterr().out.splitlines())
    assert report([str(straight)]) == 0
    assert (straight / "report.md").exists() and (straight / "cycles.png").read_bytes()[1:4] == b"PNG"
    assert journal_hashes(straight) == before


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    overrides = [f"--config.raft.{key}" for key in ("size=1", "sft_examples=30", "prompts=30", "held_out=15")]
    arguments = ["--config=configs/raft.py", *overrides, f"--workdir={tmp_path / 'run'}", "--dry_run"]
    assert main_here(*arguments) == 0
    told = capsys.readouterr().out
    assert "30 problems, such as" in told and "nothing was written" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", (advise, report))
def test_what_is_no_run_is_refused_in_one_line(command, tmp_path, capsys):
    assert command([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
