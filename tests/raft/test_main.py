"""The command itself: killed, stopped and undisturbed processes end in equal journals; advice and report read them."""

import json
import signal
import time

import pytest

from fftlm_jax.raft.advise import main as advise
from fftlm_jax.raft.report import main as report
from tests.raft.raft_run import journal_hashes
from tests.tiny import run_main, start_main

TINY = [
    "--config=configs/raft.py",
    *(f"--config.model.{k}={v}" for k, v in {"d_model": 32, "n_layers": 1, "kernel_len": 8}.items()),
    *("--config.raft.size=1", "--config.raft.sft_examples=30", "--config.raft.prompts=30", "--config.raft.held_out=15"),
    *("--config.raft.cycles=2", "--config.raft.rows=32", "--config.raft.sft_epochs=200", "--config.raft.sft_lr=1e-2"),
    "--config.checkpoint.every=5",
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("raft") / "straight"
    done = run_main(*TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "finished 2 cycles" in done.stdout
    return workdir


@pytest.mark.parametrize(
    "number,appearing",
    ((signal.SIGKILL, "0000/fit.part.npz"), (signal.SIGKILL, "0001/samples.jsonl"), (signal.SIGTERM, "0000/plan.json")),
)
def test_a_process_may_end_at_any_time(straight, tmp_path, number, appearing):
    child = start_main(*TINY, f"--workdir={tmp_path}")
    deadline = time.monotonic() + 90
    while not (tmp_path / "cycles" / appearing).exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert child.returncode == -signal.SIGKILL
    else:
        assert child.returncode == 143 and "the same command goes on from there" in errors
    again = run_main(*TINY, f"--workdir={tmp_path}")
    assert again.returncode == 0, again.stderr
    assert journal_hashes(tmp_path) == journal_hashes(straight)


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


def test_a_dry_run_writes_nothing(tmp_path):
    done = run_main(*TINY, f"--workdir={tmp_path / 'run'}", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "30 problems, such as" in done.stdout and "nothing was written" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", (advise, report))
def test_what_is_no_run_is_refused_in_one_line(command, tmp_path, capsys):
    assert command([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
