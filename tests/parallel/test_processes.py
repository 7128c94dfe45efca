"""Two real processes (gloo over localhost, two simulated devices each): one run, stopped, killed and resumed.

Large parameters are cut over all four devices, so no process ever has a whole one to itself.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from fftlm_jax.recording.metrics import read_metrics
from tests.tiny import NO_PICTURES, ROOT, hash_of, main_command, main_here, write_words

pytestmark = pytest.mark.timeout(1500)

CONFIG_FILE = f"""{NO_PICTURES}
from tests.tiny import tiny_values

def get_config():
    return tiny_values(train__batch_size=8, checkpoint__every=4, eval__every=20, sample__bytes=4, train__log_every=1,
                       curriculum__rule="none", model__conv_method="fft", mesh__fsdp=4, mesh__fsdp_min_size=100,
                       model__n_layers=2)
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "two.py").write_text(CONFIG_FILE)
    write_words(folder / "corpus.txt")
    return [f"--config={folder / 'two.py'}", f"--config.data.path={folder / 'corpus.txt'}"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(arguments, workdir):
    """The processes of one run; their output goes to files, which nobody needs to empty."""
    flags = f"--xla_force_host_platform_device_count=2 {os.environ['XLA_FLAGS']}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    options = [*arguments, f"--workdir={workdir}"]
    options += [f"--config.distributed.coordinator=localhost:{free_port()}", "--config.distributed.processes=2"]
    started = []
    for i in range(2):
        output = open(workdir.with_name(f"{workdir.name}.{i}.out"), "w")  # noqa: SIM115
        command = [*main_command(*options), f"--config.distributed.process_id={i}"]
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output))
    return started


def finish(processes, workdir, timeout=600) -> list[int]:
    codes = [process.wait(timeout) for process in processes]
    if any(codes):
        for i in range(len(processes)):
            print(workdir.with_name(f"{workdir.name}.{i}.out").read_text()[-3000:], file=sys.stderr)
    return codes


def wait_for_step(workdir, step: int, process) -> None:
    """Waits until the newest process has logged so many steps."""
    deadline = time.monotonic() + 600
    output = workdir.with_name(f"{workdir.name}.0.out")
    while len(re.findall(r"  step \d+/4 ", output.read_text())) < step:
        assert process.poll() is None and time.monotonic() < deadline, "it ended too soon"
        time.sleep(0.02)


def values(workdir, kind: str, name: str) -> list[float]:
    return [r[name] for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == kind]


def steps_of(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if (p / "manifest.json").exists())


@pytest.fixture(scope="module")
def straight(arguments, tmp_path_factory):
    """An uninterrupted run of two processes."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert finish(start(arguments, workdir), workdir) == [0, 0]
    return workdir


def test_two_processes_learn_what_one_device_does(arguments, straight, tmp_path):
    workdir = tmp_path / "one"
    assert main_here(*arguments, f"--workdir={workdir}", "--config.mesh.fsdp=1") == 0
    found, expected = values(straight, "train", "loss"), values(workdir, "train", "loss")
    assert len(found) == len(expected) == 20
    assert found[:10] == pytest.approx(expected[:10], rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-3)
    assert values(straight, "eval", "bpb") == pytest.approx(values(workdir, "eval", "bpb"), rel=1e-3)


def test_only_the_first_process_speaks_and_writes(straight):
    records = read_metrics(straight / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 21))
    assert [r["step"] for r in records if r.get("event") == "checkpoint_saved"] == [4, 8, 12, 16, 20]
    spoken = straight.with_name("run.1.out").read_text()
    assert "step" not in spoken and "finished" not in spoken
    assert "finished 20 steps" in straight.with_name("run.0.out").read_text()
    assert (straight / "samples.txt").read_text().count("=== step") == 1


def test_signalled_and_killed_one_after_the_other_both_end_and_resume_exactly(arguments, straight, tmp_path):
    """A signal to the process that does not write stops both at one step; the death of either ends the other."""
    workdir = tmp_path / "run"
    processes = start(arguments, workdir)
    wait_for_step(workdir, 3, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    assert finish(processes, workdir) == [143, 143]
    saved = steps_of(workdir)[-1]
    for i in range(2):
        assert f"step {saved} is saved" in workdir.with_name(f"run.{i}.out").read_text()
    for victim in (0, 1):
        processes = start([*arguments, "--config.distributed.heartbeat=5"], workdir)
        wait_for_step(workdir, 1, processes[0])
        processes[victim].kill()
        assert processes[1 - victim].wait(timeout=600) != 0, "alone it must not go on, nor end as if all were well"
    assert finish(start(arguments, workdir), workdir) == [0, 0]
    assert hash_of(workdir) == hash_of(straight)
    assert values(workdir, "train", "loss") == values(straight, "train", "loss")
