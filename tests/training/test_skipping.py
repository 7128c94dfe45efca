"""A run over a corpus with a place whose loss is NaN: it is passed over, logged, and the same after a resume."""

import shutil

import pytest

from fftlm_jax.checkpoints.saved_step import read_host
from fftlm_jax.checkpoints.verification import main as verify
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.errors import NonFiniteError
from fftlm_jax.training import run
from tests.tiny import tiny_values
from tests.training.poison import poison_windows

KEPT = 5  # The checkpoint that the run is set back to.


@pytest.fixture
def values(tmp_path, monkeypatch):
    poison_windows(monkeypatch)
    text = bytearray(b"all work and no play makes jack a dull boy. " * 40)
    text[700] = 255
    (tmp_path / "corpus").write_bytes(text)
    return lambda **more: tiny_values(data__path=str(tmp_path / "corpus"), eval__max_bytes=100, **more)


def state_hash(workdir, capsys):
    assert verify([str(workdir)]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_it_is_passed_over_and_a_resumed_run_passes_it_over_too(values, tmp_path, capsys):
    workdir = tmp_path / "run"
    run(values(train__skip_nonfinite=1, checkpoint__keep_last=20), workdir)
    assert "Passed over, as train.skip_nonfinite allows" in capsys.readouterr().out
    records = read_metrics(workdir / "metrics.jsonl")
    passed = [r["step"] for r in records if r.get("event") == "nonfinite" and r["skipped"]]
    trained = [r["step"] for r in records if r["kind"] == "train"]
    assert passed and max(passed) > KEPT and sorted(passed + trained) == list(range(1, 21))
    controller = read_host(workdir / "checkpoints" / "20")["controller"]
    losses = {r["loss"] for r in records if r["kind"] == "train"}
    assert controller["losses"] and set(controller["losses"]) <= losses, "the curriculum saw none of those passed over"
    wanted = state_hash(workdir, capsys)
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > KEPT:
            shutil.rmtree(folder)
    run(values(train__skip_nonfinite=1), workdir)
    assert state_hash(workdir, capsys) == wanted
    again = read_metrics(workdir / "metrics.jsonl")
    assert [r["step"] for r in again if r.get("event") == "nonfinite"] == passed


def test_without_leave_it_ends_the_run(values, tmp_path):
    with pytest.raises(NonFiniteError, match="the update was not made"):
        run(values(), tmp_path / "run")
