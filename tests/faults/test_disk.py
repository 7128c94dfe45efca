"""Rows 12 to 16, 27 and 28: what lies on disk that should not, what cannot be written, and who else is there."""

import errno
import os
import resource
import socket
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

from fftlm_jax.checkpoints import run_directory
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.checkpoints.saved_step import manifest_fault, step_numbers, write_manifest
from fftlm_jax.checkpoints.verification import main as verify
from fftlm_jax.evaluation.evaluate_run import main as evaluate
from fftlm_jax.generation.terminal import main as generate
from fftlm_jax.recording.console import AppendedFile
from fftlm_jax.recording.metrics import MetricsLog, read_metrics
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import InUseError, NonFiniteError, SaveError
from fftlm_jax.runtime.process import run_command
from fftlm_jax.training import run
from tests.faults.full_disk import FullDisk
from tests.faults.runs import assert_equal_runs, records_of, short_values
from tests.tiny import hash_of

ARRAYS = {"weights": np.arange(3.0)}
HOST = {"controller": {"cutoff": 4}}


def test_stray_folders_and_files_are_ignored_with_a_warning_and_never_in_the_way(reference, tmp_path, capsys):
    """Also by the names of steps that are to be saved."""
    faults.arm("stop@mid_step:8")
    with pytest.raises(faults.Stopped):
        run(short_values(), tmp_path)
    checkpoints = tmp_path / "checkpoints"
    for name in ("10", "99"):
        (checkpoints / name).mkdir()
    (checkpoints / "15").write_text("a file")
    (checkpoints / "notes.txt").write_text("somebody's")
    (checkpoints / "3.orbax-checkpoint-tmp-1" / "arrays").mkdir(parents=True)
    capsys.readouterr()
    verify([str(tmp_path)])
    told = capsys.readouterr().out
    assert "3.orbax-checkpoint-tmp-1: temporary" in told and "notes.txt: no step" in told and "step 5: whole" in told
    run(short_values(), tmp_path)
    told = capsys.readouterr().out
    assert all(f"checkpoints/{name} is no step and was ignored" in told for name in ("10", "15", "99", "notes.txt"))
    assert_equal_runs(tmp_path, reference)
    assert {p.name for p in checkpoints.iterdir()} == {"15", "20", "notes.txt"}
    verify([str(tmp_path)])
    assert "quarantine/99" in capsys.readouterr().out


def test_a_file_that_the_manifest_does_not_list_is_a_fault(tmp_path):
    Checkpoints(tmp_path / "checkpoints").save(1, ARRAYS, HOST)
    step = tmp_path / "checkpoints" / "1"
    assert manifest_fault(step) is None
    for name in ("arrays/more", "code.py"):
        (step / name).write_text("x")
        assert manifest_fault(step) == f"{name!r} is not in its manifest"
        (step / name).unlink()
    (step / "link").symlink_to(tmp_path / "nowhere")
    assert manifest_fault(step) == "'link' is a link, and a saved step has none"


def test_every_file_and_folder_is_on_disk_before_the_manifest_is(tmp_path, monkeypatch):
    """What a power cut could undo is seen by the order of fsync calls alone."""
    (tmp_path / "5" / "arrays").mkdir(parents=True)
    for name in ("5/a", "5/arrays/b"):
        (tmp_path / name).write_text(name)
    synced, fsync = [], os.fsync

    def note(handle):
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))
        assert (tmp_path / "5" / "manifest.json").exists() == (synced[-2:] == ["5/manifest.json.tmp", "5"])
        fsync(handle)

    monkeypatch.setattr(run_directory.os, "fsync", note)
    write_manifest(tmp_path / "5")
    assert set(synced[:-2]) == {"5/a", "5/arrays/b", "5/arrays", "5", "."}, "then the manifest, then its name"
    assert manifest_fault(tmp_path / "5") is None


def test_temporary_folders_of_a_process_that_was_killed_go_with_the_next_save(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for name in ("7.orbax-checkpoint-tmp-123", "4.deleting"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "data").write_text("x")
    Checkpoints(checkpoints).save(8, ARRAYS, HOST)
    assert [p.name for p in checkpoints.iterdir()] == ["8"]


def test_a_save_that_was_refused_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ocp.CheckpointManager, "save", lambda self, step, **kwargs: False)
    with pytest.raises(SaveError, match="orbax refused to save step 3"):
        Checkpoints(tmp_path / "checkpoints").save(3, ARRAYS, HOST)


@pytest.mark.parametrize("place", ("before_arrays", "after_arrays", "before_manifest"))
def test_an_error_of_a_save_surfaces_in_that_save(tmp_path, place):
    faults.arm(f"full@{place}:2")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, ARRAYS, HOST)
    with pytest.raises(SaveError, match="step 2 could not be saved .*No space left"):
        checkpoints.save(2, ARRAYS, HOST)
    assert [p.name for p in checkpoints.directory.iterdir()] == ["1"]
    checkpoints.save(2, ARRAYS, HOST)
    assert step_numbers(checkpoints.directory) == [1, 2]


def test_a_save_that_meets_a_limit_of_the_system_says_so_in_one_line(tmp_path, capfd, monkeypatch):
    """Orbax would print the traceback of every write that fails, and of those that end after it."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # pytest has one of its own.
    noise = np.random.default_rng(0)
    arrays = {f"weights{n}": noise.random(20_000) for n in range(8)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, ARRAYS, HOST)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capfd.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        code = run_command(lambda: checkpoints.save(2, arrays, HOST))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    out, err = capfd.readouterr()
    assert (code, out) == (6, "") and err.count("\n") == 1
    assert err.startswith("SaveError: ") and "step 2 could not be saved (" in err and err.endswith("File too large).\n")
    assert step_numbers(checkpoints.directory) == [1] and manifest_fault(checkpoints.directory / "1") is None
    checkpoints.save(2, arrays, HOST)
    assert manifest_fault(checkpoints.directory / "2") is None


class FailsWhenDropped:
    def __init__(self, message):
        self.message = message

    def __del__(self):
        raise RuntimeError(self.message)


def test_a_command_is_silent_about_writes_that_nobody_waits_for_and_about_nothing_else(capfd, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    assert run_command(lambda: FailsWhenDropped("Event loop is closed") and None) == 0
    assert capfd.readouterr() == ("", "")
    assert run_command(lambda: FailsWhenDropped("another error") and None) == 0
    assert "RuntimeError: another error" in capfd.readouterr().err
    assert sys.unraisablehook is sys.__unraisablehook__


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_nothing_that_is_not_finite_is_ever_saved(tmp_path, value):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state = {"a": np.ones(3), "moments": {"b": np.array([1.0, value], np.float32)}, "count": np.int32(1)}
    with pytest.raises(NonFiniteError, match="step 4 was not saved: moments/b hold NaN or infinite") as error:
        checkpoints.save(4, state, HOST)
    assert error.value.exit_code == 3 and not checkpoints.directory.exists()


@pytest.mark.parametrize("clears", (True, False))
def test_a_disk_too_full_for_metrics_and_pictures_ends_no_run(reference, tmp_path, monkeypatch, capsys, clears):
    disk = FullDisk(monkeypatch)
    step = {"now": 0}
    point = faults.point

    def fill(place, number):
        if place == "mid_step":
            step["now"] = number
            disk.full = number > 3 and not (clears and number > 13)
        point(place, number)

    monkeypatch.setattr(faults, "point", fill)
    run(short_values(sample__bytes=4), tmp_path)
    told = capsys.readouterr().out
    for name in ("metrics.jsonl", "tensorboard/", "run.log", "samples.txt", "curves.png"):
        assert told.count(f"WARNING: {name} cannot be written (No space left on device)") == 1, name
    assert disk.failures > 10 and hash_of(tmp_path) == hash_of(reference)
    if clears:
        assert records_of(tmp_path) == records_of(reference), "late, but all of it"
        assert (tmp_path / "samples.txt").read_text().count("=== step") == 2
        assert "finished 20 steps" in (tmp_path / "run.log").read_text()
    for name in ("metrics.jsonl", "run.log"):
        text = (tmp_path / name).read_text()
        assert text == "" or text.endswith("\n")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == len((tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_run_resumed_after_records_were_lost_goes_on_behind_whole_lines(tmp_path):
    """A checkpoint counts records that a full disk then never took, and the process dies on half a line."""
    log = MetricsLog(tmp_path / "m.jsonl", tmp_path / "tb")
    log.write("train", 1, loss=1.0)
    size = log.flush()
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    resumed = MetricsLog(tmp_path / "m.jsonl", tmp_path / "tb", size + 1000, step=3)
    resumed.write("train", 4, loss=2.0)
    resumed.close()
    assert [r["step"] for r in read_metrics(tmp_path / "m.jsonl")] == [1, 4]
    assert "tra{" not in (tmp_path / "m.jsonl").read_text()


def test_a_real_limit_on_the_size_of_files_leaves_whole_lines(tmp_path):
    """The system itself takes a part of a write and then refuses; when the limit is gone, the rest follows."""
    lines = [f"{i:04} {'x' * 95}\n" for i in range(300)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = AppendedFile(tmp_path / "lines")
    failures = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_345, hard))
    try:
        for line in lines[:200]:
            try:
                file.add(line)
            except OSError:
                failures += 1
        on_disk = (tmp_path / "lines").read_text()
        assert failures and 0 < len(on_disk) <= 12_345 and on_disk == "".join(lines)[: len(on_disk)]
        assert on_disk.endswith("\n") and file.size == 200 * 101
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for line in lines[200:]:
        file.add(line)
    file.close()
    assert (tmp_path / "lines").read_text() == "".join(lines)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    """Root may write anywhere that can be written at all, so the place is one where nobody can."""
    monkeypatch.setattr("fftlm_jax.training.compiler.StepCompiler.ahead", lambda *_: pytest.fail("compiled"))
    (tmp_path / "file").write_text("x")
    for place in ("/proc/run", tmp_path / "file" / "run"):
        with pytest.raises(SaveError, match="cannot be written") as error:
            run(short_values(), place)
        assert error.value.exit_code == 6


@pytest.mark.parametrize("where", ("lock", "probe"))
def test_a_disk_that_is_full_from_the_start_is_refused(tmp_path, monkeypatch, where):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "lock":
        (tmp_path / "lock").symlink_to("/dev/full")  # Such a link is refused, so that refusal is left out here.
        monkeypatch.setattr(run_directory, "require_contained", lambda root: None)
    else:
        monkeypatch.setattr(run_directory.Path, "touch", refuse)
    with pytest.raises(SaveError, match=r"cannot be written \("):
        RunDirectory(tmp_path).acquire()
    monkeypatch.undo()
    (tmp_path / "lock").unlink()
    RunDirectory(tmp_path).acquire()


def test_a_relative_path_is_where_the_process_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory("runs/x")
    monkeypatch.chdir("/")
    directory.acquire()
    assert directory.checkpoints == tmp_path / "runs" / "x" / "checkpoints" and directory.root.is_dir()
    directory.release()


def test_a_lock_names_its_holder_and_outlives_no_process(tmp_path):
    (tmp_path / "lock").write_text("process 1 on host elsewhere")  # Of a process that is gone, or before a reboot.
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    first.acquire()
    with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on host {socket.gethostname()}") as error:
        second.acquire()
    assert error.value.exit_code == 5
    first.release()
    assert (tmp_path / "lock").read_text() == ""
    second.acquire()
    second.release()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_directory.fcntl, "flock", no_locks)
    directory = RunDirectory(tmp_path)
    directory.acquire()
    assert "file system without locks: start no second process" in directory.notes[0]


def test_a_locked_run_can_be_read(reference, capsys):
    held = RunDirectory(reference)
    held.acquire()
    try:
        assert generate([f"--workdir={reference}", "--prompt=x", "--bytes=4"]) == 0
        assert (
            evaluate(
                [str(reference), "--generate=0", "--contexts=0", "--max_bytes=99", f"--out={reference.parent / 'e'}"]
            )
            == 0
        )
        assert verify([str(reference)]) == 0
        with pytest.raises(InUseError):
            run(short_values(), reference)
    finally:
        held.release()


def test_a_system_without_flock_works_and_says_that_nothing_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "fcntl", None)
    directory = run_directory.RunDirectory(tmp_path / "run")
    directory.acquire()
    directory.release()
    assert directory.notes == ["WARNING: run directories are not locked on this system: start no second process in one"]
