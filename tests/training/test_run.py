"""Whole runs: killed and resumed is the same run; signals, refusals and files on disk.

Processes are real where the process itself is under test; everything else goes through main.py's entry point here.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import time

import pytest

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Restored
from fftlm_jax.checkpoints.verification import main as verify_main
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.runtime.matrix_units import cpu_flags
from fftlm_jax.training import run_parts
from tests.tiny import NO_PICTURES, hash_of, main_here, run_main, start_main, tiny, write_words

pytestmark = pytest.mark.timeout(300)

CONFIG_FILE = f"""{NO_PICTURES}
from tests.tiny import tiny_values

def get_config():
    return tiny_values(model__n_layers=2)
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A tiny config file and corpus; 20 steps, raises at 6 and 12, checkpoints every 5 steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny_run.py").write_text(CONFIG_FILE)
    write_words(folder / "corpus.txt")
    return [f"--config={folder / 'tiny_run.py'}", f"--config.data.path={folder / 'corpus.txt'}"]


def records_of(workdir) -> list[dict]:
    """What the metrics say of training, without times."""
    return [
        {k: v for k, v in record.items() if k not in ("bytes_per_second", "train_seconds")}
        for record in read_metrics(workdir / "metrics.jsonl")
        if record["kind"] != "event" or record["event"] in ("cutoff_raised", "warning")
    ]


@pytest.fixture(scope="module")
def straight(arguments, tmp_path_factory):
    """A run that nobody disturbs, in this process."""
    workdir, output = tmp_path_factory.mktemp("straight") / "run", io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main_here(*arguments, f"--workdir={workdir}") == 0
    return workdir, output.getvalue()


def test_it_raises_by_the_plateau_rule_and_answers(straight):
    workdir, output = straight
    raises = [r for r in read_metrics(workdir / "metrics.jsonl") if r.get("event") == "cutoff_raised"]
    assert [(r["from"], r["to"]) for r in raises] == [(4, 8), (8, 17)]
    assert all(r["lr_after"] == pytest.approx(1e-2) and r["lr_before"] < 1e-2 for r in raises)
    assert "🚀 CUTOFF RAISED: 4 -> 8" in output and "cutoff=17/17" in output


def test_it_leaves_the_promised_files(straight):
    workdir, output = straight
    for name in ("config.json", "env.json", "metrics.jsonl", "curves.png", "samples.txt", "run.log", "tensorboard"):
        assert (workdir / name).exists(), name
    records = read_metrics(workdir / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 21))
    assert [r["step"] for r in records if r["kind"] == "eval"] == [6, 7, 12, 14, 20]
    compiled = [r for r in records if r.get("event") == "compiled"]
    assert [r["cutoff"] for r in compiled] == [4, 8, 17], "each visited mask once, nothing else"
    assert set(records[1]) >= {"kind", "step", "epoch", "loss", "lr", "cutoff", "grad_norm", "bytes_per_second"}
    assert (workdir / "samples.txt").read_text().count("=== step") == 5
    assert str(workdir.parent) not in (workdir / "env.json").read_text()


def test_the_last_and_the_best_checkpoints_are_kept(straight):
    workdir, _ = straight
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    scores = {r["bpb"]: r["step"] for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "eval"}
    assert {15, 20, scores[min(scores)]} <= set(steps)
    assert all((workdir / "checkpoints" / str(s) / "manifest.json").exists() for s in steps)


def test_killed_and_stopped_by_signals_again_and_again_it_is_the_same_run(arguments, straight, tmp_path, capsys):
    """SIGKILL behind the first save, SIGTERM and SIGINT later, wherever in a step they strike.

    A signal that asks finishes the step, saves and ends with its own exit code. This process finishes what those left;
    state and metrics are those of the run that nobody disturbed.
    """
    workdir, options, rng = tmp_path / "run", [*arguments, f"--workdir={tmp_path / 'run'}"], random.Random(1)
    lives = ((signal.SIGKILL, 6, 9), (signal.SIGTERM, 10, 13), (signal.SIGINT, 14, 17))
    for number, first, last in lives:
        process = start_main(*options)
        _wait_for_step(process, workdir / "run.log", rng.randint(first, last))
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + number, errors
            assert re.search(r"step \d+ is saved; run the same command", errors)
            assert verify_main([str(workdir)]) == 0
    capsys.readouterr()
    assert main_here(*options) == 0 and "resuming from step" in capsys.readouterr().out
    assert hash_of(workdir) == hash_of(straight[0])
    assert records_of(workdir) == records_of(straight[0])


def _wait_for_step(process, log, target: int) -> None:
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and _steps_logged(log) >= target:
            return
        time.sleep(0.002)
    raise AssertionError(f"it ended before step {target}: {process.communicate()}")


def _steps_logged(log) -> int:
    """Whole-run number of the last step that the newest process logged (4 steps an epoch)."""
    text = log.read_text().rsplit(" parameters, ", 1)[-1]
    epochs = re.findall(r" epoch (\d+)/5", text)
    steps = re.findall(r"step (\d+)/4 ", text.rsplit("epoch ", 1)[-1])
    return 4 * int(epochs[-1] if epochs else 0) + int(steps[-1] if steps else 0)


def test_a_signal_before_the_first_step_leaves_quietly(arguments, tmp_path):
    """In the midst of the first compilation, whose cache is cold."""
    cold = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    process = start_main(*arguments, f"--workdir={tmp_path / 'run'}", env=cold)
    for line in process.stdout:
        if "parameters" in line:
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130 and "stopped before the first step" in errors
    assert "Traceback" not in errors


def test_a_run_as_users_start_it_sets_flags_and_keeps_compiled_programs(arguments, tmp_path):
    """With none of the variables that this suite sets: XLA's flags are main.py's, and programs are kept for later.

    With its own config file, which draws the picture.
    """
    (tmp_path / "plain.py").write_text("from tests.tiny import tiny_values as get_config\n")
    plain = {"XLA_FLAGS": None, "CI": None, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    plain |= {name: None for name in os.environ if name.startswith(("JAX_COMP", "JAX_PERS"))}
    small = {
        "model.n_layers": 1,
        "curriculum.rule": "none",
        "train.epochs": 1,
        "sample.bytes": 0,
        "checkpoint.every": 9,
    }
    options = [f"--config.{name}={value}" for name, value in small.items()]
    arguments = [f"--config={tmp_path / 'plain.py'}", arguments[1], f"--workdir={tmp_path / 'run'}"]
    done = run_main(*arguments, *options, env=plain)
    assert done.returncode == 0, done.stderr
    environment = json.loads((tmp_path / "run" / "env.json").read_text())
    assert environment["xla_flags"] == " ".join(cpu_flags())
    entries = list((tmp_path / "cache" / "fftlm_jax").rglob("*-cache"))
    assert entries and all(entry.with_name(f"{entry.name}.sha256").exists() for entry in entries)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def copy(straight, tmp_path):
    """A copy of the finished run to do things to."""
    shutil.copytree(straight[0], tmp_path / "copy")
    return tmp_path / "copy"


def tree_hash(folder) -> dict:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ("run.log", "lock")}


def test_the_same_command_again_says_finished_and_changes_nothing(arguments, copy, capsys):
    before = tree_hash(copy)
    assert main_here(*arguments, f"--workdir={copy}") == 0
    assert "already finished: 20 steps" in capsys.readouterr().out
    assert tree_hash(copy) == before


def test_another_architecture_is_refused_field_by_field(arguments, copy, capsys):
    before = tree_hash(copy)
    assert main_here(*arguments, f"--workdir={copy}", "--config.model.d_model=32", "--config.lr.base=0.5") == 4
    told = capsys.readouterr().err
    assert "model.d_model: 16 -> 32" in told and "lr.base: 0.01 -> 0.5" in told
    assert tree_hash(copy) == before, "nothing on disk was touched"


def test_more_epochs_on_request(arguments, copy, capsys):
    more = [*arguments, f"--workdir={copy}", "--config.train.epochs=6"]
    assert main_here(*more) == 4
    refused = capsys.readouterr().err
    assert "train.epochs: 5 -> 6" in refused and "resume.allow" in refused
    assert main_here(*more, "--config.resume.allow=train.epochs") == 0
    records = read_metrics(copy / "metrics.jsonl")
    assert [r["key"] for r in records if r.get("event") == "config_changed"] == ["train.epochs"]
    assert max(r["step"] for r in records if r["kind"] == "train") == 24
    assert json.loads((copy / "config.json").read_text())["train"]["epochs"] == 6


def test_other_data_is_refused(arguments, copy, tmp_path, capsys):
    (tmp_path / "other.txt").write_bytes(b"other bytes " * 500)
    assert main_here(*arguments, f"--workdir={copy}", f"--config.data.path={tmp_path / 'other.txt'}") == 4
    assert "the corpus differs" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ("", "runs/a"))
def test_a_run_directory_in_its_own_corpus_is_refused_and_nothing_written(arguments, tmp_path, capsys, inside):
    (tmp_path / "words.txt").write_bytes(b"some bytes " * 500)
    corpus = f"--config.data.path={tmp_path}"
    assert main_here(*arguments, corpus, f"--workdir={tmp_path / inside}", "--overwrite") == 1
    told = capsys.readouterr().err
    assert f"DataError: --workdir: {tmp_path / inside} lies in the corpus {tmp_path}, which would grow" in told
    assert [file.name for file in tmp_path.iterdir()] == ["words.txt"]


def test_a_corpus_with_another_name_is_told_so_and_goes_on_on_request(arguments, copy, tmp_path, capsys):
    (path,) = (a.partition("=")[2] for a in arguments if a.startswith("--config.data.path="))
    shutil.copy(path, tmp_path / "renamed.txt")
    renamed = [*arguments, f"--workdir={copy}", f"--config.data.path={tmp_path / 'renamed.txt'}"]
    assert main_here(*renamed) == 4
    told = capsys.readouterr().err
    assert "of the names and bytes of its files" in told and "under their old names" in told
    assert main_here(*renamed, "--config.resume.allow=data") == 0


def test_a_damaged_step_is_set_aside_and_the_one_before_goes_on(arguments, straight, copy, capsys):
    data = max(
        (copy / "checkpoints" / "20" / "arrays").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert verify_main([str(copy)]) == 4
    assert f"{data.name}' does not match its manifest" in capsys.readouterr().out
    assert main_here(*arguments, f"--workdir={copy}") == 0
    assert "resuming from step 15" in capsys.readouterr().out
    assert hash_of(copy) == hash_of(straight[0])
    assert (copy / "quarantine" / "20").is_dir()


def test_when_no_step_is_usable_nothing_starts_over(arguments, copy, capsys):
    for manifest in (copy / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    before = tree_hash(copy)
    assert main_here(*arguments, f"--workdir={copy}") == 4
    told = capsys.readouterr().err
    assert "no step is usable" in told and "step 20" in told
    assert tree_hash(copy) == before


def test_overwrite_moves_the_old_run_aside(arguments, copy):
    options = [f"--workdir={copy}", "--overwrite", "--config.train.epochs=1", "--config.lr.base=0.1"]
    assert main_here(*arguments, *options) == 0
    assert (copy.with_name("copy.1") / "checkpoints" / "20").is_dir()
    assert json.loads((copy / "config.json").read_text())["lr"]["base"] == 0.1


def test_resume_modes(arguments, copy, tmp_path, capsys):
    assert main_here(*arguments, f"--workdir={copy}", "--config.resume.mode=never") == 1
    assert "is not empty" in capsys.readouterr().err
    assert main_here(*arguments, f"--workdir={tmp_path / 'new'}", "--config.resume.mode=must") == 4
    assert "holds no run" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_weights_of_a_run_start_another_at_its_cutoff(arguments, copy, tmp_path):
    """Never regress: the new run's ladder begins at 4, the weights come from cutoff 17; its architecture is theirs."""
    options = [f"--workdir={tmp_path / 'new'}", f"--config.init.checkpoint={copy}", "--config.model.d_model=64"]
    assert main_here(*arguments, *options, "--config.train.epochs=1") == 0
    first = next(r for r in read_metrics(tmp_path / "new" / "metrics.jsonl") if r["kind"] == "train")
    old = [r for r in read_metrics(copy / "metrics.jsonl") if r["kind"] == "train"]
    assert first["cutoff"] == 17 and first["loss"] < (old[0]["loss"] + old[-1]["loss"]) / 2
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model"]["d_model"] == 16


def test_a_second_process_is_kept_out(arguments, tmp_path, capsys):
    options = [*arguments, f"--workdir={tmp_path / 'run'}", "--config.train.epochs=400"]
    first = start_main(*options)
    try:
        for line in first.stdout:
            if "step 2/4" in line:
                break
        for more in ([], ["--overwrite"]):
            assert main_here(*options, *more) == 5
            assert f"in use by process {first.pid}" in capsys.readouterr().err
        assert first.poll() is None and [p.name for p in tmp_path.iterdir()] == ["run"]
    finally:
        first.kill()
        first.communicate()


def test_a_nonfinite_loss_stops_the_run_with_the_facts(arguments, tmp_path, capsys):
    options = [*arguments, f"--workdir={tmp_path / 'run'}", "--config.lr.base=1e30", "--config.optim.clip=1e30"]
    assert main_here(*options) == 3
    assert re.search(r"step \d+: loss .* at cutoff 4, LR .* corpus offset \d+", capsys.readouterr().err)
    event = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r.get("event") == "nonfinite"]
    assert len(event) == 1 and event[0]["cutoff"] == 4 and len(event[0]["offsets"]) == 4
    assert event[0]["lr"] > 1e29, "the rate of the step that failed"


def test_a_first_save_cut_short_starts_over_and_loses_nothing(arguments, straight, copy, capsys):
    for step in (copy / "checkpoints").iterdir():
        if step.name != "15":
            shutil.rmtree(step)
    (copy / "checkpoints" / "15" / "manifest.json").unlink()
    assert main_here(*arguments, f"--workdir={copy}") == 0
    assert "step 15 was moved to quarantine/: it has no manifest" in capsys.readouterr().out
    assert hash_of(copy) == hash_of(straight[0])
    assert [r["step"] for r in read_metrics(copy / "metrics.jsonl") if r["kind"] == "train"] == list(range(1, 21))
    assert (copy / "samples.txt").read_text().count("=== step") == 5
    assert (copy / "quarantine" / "15").is_dir()


def test_overwrite_moves_nothing_but_runs(arguments, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    assert main_here(*arguments, f"--workdir={tmp_path / 'thesis'}", "--overwrite") == 1
    assert "holds no run and will not be moved" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_a_run_from_weights_resumes_without_their_source(arguments, copy, tmp_path, monkeypatch):
    options = [*arguments, f"--workdir={tmp_path / 'new'}", f"--config.init.checkpoint={copy}"]
    options += ["--config.model.seq_len=64", "--config.curriculum.ladder=(4,8,'full')", "--config.train.epochs=2"]
    monkeypatch.setenv(faults.VARIABLE, "term@mid_step:3")
    assert main_here(*options) == 143
    monkeypatch.delenv(faults.VARIABLE)
    shutil.rmtree(copy)
    assert main_here(*options) == 0
    first = next(r for r in read_metrics(tmp_path / "new" / "metrics.jsonl") if r["kind"] == "train")
    assert first["cutoff"] == 33, "full of 17 bins is full of 33"


def test_a_profile_window_survives_a_stop_inside_it(arguments, tmp_path, monkeypatch):
    options = [*arguments, f"--workdir={tmp_path / 'run'}", "--config.profile.start=1", "--config.profile.steps=6"]
    options += ["--config.train.epochs=2", "--config.sample.bytes=0"]
    monkeypatch.setenv(faults.VARIABLE, "term@mid_step:4")
    assert main_here(*options) == 143
    monkeypatch.delenv(faults.VARIABLE)
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    assert main_here(*options) == 0
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 2


def test_a_saved_cutoff_below_the_coefficients_in_use_is_refused(tmp_path):
    """Never regress: going on from it would switch off what the weights have learned."""
    config = tiny(model__n_layers=1)
    parts = run_parts.build_run(config, RunDirectory(tmp_path / "run"))
    state = run_parts.initial_run_state(parts)
    host = state.host_part(config, parts.corpus.fingerprint, (0, 0))
    assert run_parts.restored_run_state(parts, Restored(state.arrays, host, 5)).controller.cutoff == 4
    host["controller"]["cutoff"] = 2
    with pytest.raises(CheckpointError, match="checkpoints/5: the saved cutoff 2 is below 4: a cutoff never regresses"):
        run_parts.restored_run_state(parts, Restored(state.arrays, host, 5))
    assert not (tmp_path / "run").exists(), "nothing is written by looking"
