"""A disk that is full for a while: training goes on, nothing is left lying about, and the result is the same."""

import errno
import shutil

import orbax.checkpoint as ocp
import pytest

from fftlm_jax.checkpoints import save_restore
from fftlm_jax.checkpoints.verification import main as verify
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.errors import SaveError
from fftlm_jax.training import run
from tests.tiny import tiny_values


def state_hash(workdir, capsys):
    capsys.readouterr()
    assert verify([str(workdir)]) == 0
    return capsys.readouterr().out.splitlines()[-1]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    run(tiny_values(), workdir)
    return workdir


def fill_disk(monkeypatch, where, steps):
    """Saves of these steps fail: before anything is written, half-way, or when the manifest is to be written."""
    save, write_manifest = ocp.CheckpointManager.save, save_restore.write_manifest

    def full(directory):
        raise OSError(errno.ENOSPC, "No space left on device", str(directory))

    def failing_save(self, step, **kwargs):
        if step in steps and where != "manifest":
            if where == "half-way":
                (self.directory / f"{step}.orbax-checkpoint-tmp" / "arrays").mkdir(parents=True)
            full(self.directory)
        return save(self, step, **kwargs)

    def failing_manifest(directory):
        if where == "manifest" and int(directory.name) in steps:
            full(directory)
        write_manifest(directory)

    monkeypatch.setattr(ocp.CheckpointManager, "save", failing_save)
    monkeypatch.setattr(save_restore, "write_manifest", failing_manifest)


@pytest.mark.parametrize("where", ("at once", "half-way", "manifest"))
def test_a_run_survives_saves_that_fail(straight, tmp_path, monkeypatch, capsys, where):
    fill_disk(monkeypatch, where, {5, 10})
    run(tiny_values(), tmp_path)
    told = capsys.readouterr().out
    assert "No space left on device" in told and "Training goes on" in told
    events = [(r["step"], r["event"]) for r in read_metrics(tmp_path / "metrics.jsonl") if "save" in r.get("event", "")]
    assert (5, "save_failed") in events and (10, "save_failed") in events and (20, "checkpoint_saved") in events
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name or p.name in ("5", "10")]
    assert state_hash(tmp_path, capsys) == state_hash(straight, capsys)


def test_too_many_in_a_row_end_it_and_the_older_step_is_whole(straight, tmp_path, monkeypatch, capsys):
    fill_disk(monkeypatch, "half-way", {7, 10, 14, 15})
    with pytest.raises(SaveError, match="step 14 could not be saved"):
        run(tiny_values(), tmp_path)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["5"]
    run(tiny_values(), tmp_path)
    assert state_hash(tmp_path, capsys) == state_hash(straight, capsys)


def test_the_last_save_must_not_fail(straight, tmp_path, monkeypatch):
    shutil.copytree(straight, tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        if step.name == "20":
            shutil.rmtree(step)
    fill_disk(monkeypatch, "at once", {20})
    with pytest.raises(SaveError, match="step 20 could not be saved"):
        run(tiny_values(), tmp_path / "run")
