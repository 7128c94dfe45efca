"""Rows 1, 10, 12, 19, 20, 21 and 35: what may differ between two runs without changing them, and what is refused."""

import shutil
import time

import pytest

from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.checkpoints.saved_step import step_numbers
from fftlm_jax.config.reading import refuse_changes, to_dict
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.training import loop, progress, run
from tests.faults.runs import assert_equal_runs, short_values
from tests.tiny import hash_of, tiny


class JumpingClock:
    """`time.time` goes back an hour at every call; `perf_counter` is a counter that a save takes 1000 seconds of."""

    def __init__(self, monkeypatch):
        self.wall, self.steady = 1.7e9, 0.0
        monkeypatch.setattr(time, "time", self.time)
        for module in (loop, progress):
            monkeypatch.setattr(module.time, "perf_counter", self.perf_counter)
        save = Checkpoints.save
        monkeypatch.setattr(Checkpoints, "save", lambda *a, **k: self.advance(1000) or save(*a, **k))

    def time(self):
        self.wall -= 3600
        return self.wall

    def perf_counter(self):
        self.steady += 0.01
        return self.steady

    def advance(self, seconds):
        self.steady += seconds


def test_twice_the_same_and_whatever_the_clock_says(reference, tmp_path, monkeypatch):
    JumpingClock(monkeypatch)
    result = run(short_values(), tmp_path)
    monkeypatch.undo()
    assert_equal_runs(tmp_path, reference)
    assert 4000 < result["seconds"] < 5000 and 0 < result["train_seconds"] < 10, "a slow save is no slow step"
    assert all(r["bytes_per_second"] > 0 for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train")


def set_back(reference, folder):
    """A copy of a finished run, without its last step."""
    shutil.copytree(reference, folder)
    steps = step_numbers(folder / "checkpoints")
    shutil.rmtree(folder / "checkpoints" / str(steps[-1]))
    return folder


def test_a_run_may_move_and_be_watched_otherwise(reference, tmp_path):
    workdir = set_back(reference, tmp_path / "elsewhere")
    run(short_values(train__log_every=5, eval__batch_size=2, checkpoint__every=4, compile_cache=""), workdir)
    assert hash_of(workdir, 20) == hash_of(reference, 20)


@pytest.mark.parametrize(
    "message,overrides",
    (
        ("model.d_model: 16 -> 32", {"model__d_model": 32}),
        ("model.n_layers: 1 -> 2", {"model__n_layers": 2}),
        ("model.dtype: 'float32' -> 'bfloat16'", {"model__dtype": "bfloat16"}),
        ("optim.name: 'adamw' -> 'muon'", {"optim__name": "muon", "lr__restart": "none"}),
        ("model.seq_len: 32 -> 64", {"model__seq_len": 64}),
        ("train.batch_size: 2 -> 4", {"train__batch_size": 4}),
        ("seed: 0 -> 1", {"seed": 1}),
        ("curriculum.threshold: 0.5 -> 0.1", {"curriculum__threshold": 0.1}),
        ("train.epochs: 5 -> 6", {"train__epochs": 6}),
    ),
)
def test_another_run_is_no_continuation(message, overrides):
    with pytest.raises(CheckpointError, match=message) as error:
        refuse_changes(to_dict(tiny()), tiny(**overrides))
    assert error.value.exit_code == 4


@pytest.mark.torture
@pytest.mark.parametrize("damage", ("cut", "missing", "flipped", "empty"))
def test_whatever_file_of_the_newest_step_is_damaged(reference, tmp_path, damage):
    """The step before takes its place, later saves succeed, and the run ends as if nothing had happened."""
    newest = reference / "checkpoints" / "20"
    files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 5
    for number, name in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(reference, workdir)
        file = workdir / "checkpoints" / "20" / name
        content = bytearray(file.read_bytes())
        if damage == "missing":
            file.unlink()
        else:
            content[len(content) // 2] ^= 1
            file.write_bytes({"cut": content[:-1], "flipped": content, "empty": b""}[damage])
        run(short_values(), workdir)
        assert (workdir / "quarantine" / "20").is_dir(), name
        assert_equal_runs(workdir, reference)
        shutil.rmtree(workdir)
