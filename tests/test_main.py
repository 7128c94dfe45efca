"""The command line: refusals before anything is written, the dry run, verify and generation."""

import contextlib
import io
import json
import re
import subprocess
import sys

import pytest

from fftlm_jax.checkpoints.verification import main as verify_main
from fftlm_jax.generation.terminal import main as generate_main
from fftlm_jax.runtime import matrix_units
from tests.tiny import ROOT, main_here

pytestmark = pytest.mark.timeout(200)
QUICKSTART = "--config=configs/quickstart.py"


def test_a_workdir_that_is_a_file_or_holds_something_else(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main_here(QUICKSTART, f"--workdir={tmp_path / 'file'}") == 1
    assert "is a file" in capsys.readouterr().err
    assert main_here(QUICKSTART, f"--workdir={tmp_path}") == 1
    assert "holds files but no run" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_dry_run_reports_and_writes_nothing(tmp_path, capsys):
    assert main_here(QUICKSTART, "--dry_run", f"--workdir={tmp_path / 'run'}") == 0
    told = capsys.readouterr().out
    for pattern in (r"total +528,000", "blocks/mixer/spectrum +4x8x64", "GFLOP", "MiB of temporaries", "compiled in"):
        assert re.search(pattern, told), pattern
    assert list(tmp_path.iterdir()) == []


TINY_FFT = [
    "--config=configs/fft.py", "--config.model.d_model=32", "--config.model.n_layers=2", "--config.train.batch_size=1",
    "--config.train.accum_steps=2", "--config.train.steps_per_epoch=3", "--config.train.epochs=2",
    "--config.lr.stages=(('rest',1.0,0.1),)", "--config.lr.base=1e-2", "--config.eval.max_bytes=4096",
    "--config.curriculum.rule=none",
    "--config.sample.bytes=4", "--config.profile.start=1", "--config.profile.steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def fft_run(tmp_path_factory):
    """`configs/fft.py` really trains: a thin model with its own window and kernels."""
    workdir, output = tmp_path_factory.mktemp("fft") / "run", io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main_here(*TINY_FFT, f"--workdir={workdir}") == 0
    return workdir, output.getvalue()


def test_the_fft_config_trains_the_chunk_objective(fft_run):
    workdir, output = fft_run
    assert json.loads((workdir / "config.json").read_text())["model"]["conv_method"] == "fft"
    assert "chunk_bpb=" in output and "finished 6 steps" in output
    losses = [float(x) for x in re.findall(r"avg_loss=([\d.]+)", output)]
    assert losses[1] < losses[0]


def test_a_profile_window_leaves_a_trace(fft_run):
    assert list((fft_run[0] / "profile").rglob("*.xplane.pb"))


def test_verify_prints_the_state_and_refuses_what_is_no_run(fft_run, tmp_path, capsys):
    assert verify_main([str(fft_run[0])]) == 0
    assert re.search(r"step 6: whole\nstate of step 6: \w{64}", capsys.readouterr().out)
    assert verify_main([str(tmp_path)]) == 1


def test_generation_from_the_command_line(fft_run, capsys):
    """A process of its own and the entry point in this one write the same."""
    options = [f"--workdir={fft_run[0]}", "--prompt=def ", "--bytes=5"]
    command = [sys.executable, "-m", "fftlm_jax.generation", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert generate_main(options) == 0
    assert done.stdout.startswith("def ") and done.stdout == capsys.readouterr().out and "step 6" in done.stderr


@pytest.mark.parametrize(
    "options,code,message",
    (
        (["--step=99"], 1, "not best, last or one of the saved steps .6."),
        (["--top_p=0"], 1, "--top_p: must be within 0 .exclusive. and 1, not 0.0"),
        (["--bytes=0"], 1, "--bytes: must be at least 1"),
        (["--temperature=nan"], 1, "--temperature: must be a number"),
        (["--workdir=no/such/run"], 1, "holds no run"),
    ),
)
def test_generation_refuses_by_name(fft_run, options, code, message, capsys):
    assert generate_main([f"--workdir={fft_run[0]}", *options]) == code
    assert re.search(message, capsys.readouterr().err)


def test_xla_flags_are_set_only_where_the_user_set_none():
    environment: dict[str, str] = {}
    matrix_units.set_cpu_flags(environment)
    assert environment == {"XLA_FLAGS": " ".join(matrix_units.cpu_flags())}
    environment = {"XLA_FLAGS": "--xla_dump_to=/dev/null"}
    matrix_units.set_cpu_flags(environment)
    assert environment == {"XLA_FLAGS": "--xla_dump_to=/dev/null"}
