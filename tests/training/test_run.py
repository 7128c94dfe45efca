"""Whole runs through main.py: killed and resumed is the same run; signals, refusals and files on disk."""

import json
import random
import re
import shutil
import signal
import time

import pytest

from fftlm_jax.training.metrics import read_metrics
from fftlm_jax.training.verify import main as verify_main
from tests.tiny import run_main, start_main, write_words

pytestmark = pytest.mark.timeout(300)

CONFIG_FILE = """
import sys
from tests.tiny import tiny_values

def get_config():
    return tiny_values()
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A tiny config file and corpus; 20 steps, raises at 6 and 12, checkpoints every 5 steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny_run.py").write_text(CONFIG_FILE)
    write_words(folder / "corpus.txt")
    return [f"--config={folder / 'tiny_run.py'}", f"--config.data.path={folder / 'corpus.txt'}"]


def hash_of(workdir, capsys) -> str:
    assert verify_main(["verify", str(workdir)]) == 0
    return re.search(r"state of step \d+: (\w{64})", capsys.readouterr().out).group(1)


def without_times(record: dict) -> dict:
    return {k: v for k, v in record.items() if k not in ("bytes_per_second", "train_seconds")}


@pytest.fixture(scope="module")
def straight(arguments, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = run_main(*arguments, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


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
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_and_the_best_checkpoints_are_kept(straight):
    workdir, _ = straight
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    scores = {r["bpb"]: r["step"] for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "eval"}
    assert {15, 20, scores[min(scores)]} <= set(steps)
    assert all((workdir / "checkpoints" / str(s) / "manifest.json").exists() for s in steps)


@pytest.mark.parametrize("seed", (1, 5))
def test_killed_at_random_and_resumed_is_the_same_run(arguments, straight, tmp_path, capsys, seed):
    """SIGKILL before and behind the raises at 6 and 12, wherever in a step it strikes. State and metrics agree."""
    workdir, options = tmp_path / "run", [*arguments, f"--workdir={tmp_path / 'run'}"]
    rng = random.Random(seed)
    for target in (rng.randint(1, 8), rng.randint(12, 18)):
        process = start_main(*options)
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            log = workdir / "run.log"
            if log.exists() and _steps_logged(log) >= target:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = run_main(*options)
    assert done.returncode == 0, done.stderr
    assert hash_of(workdir, capsys) == hash_of(straight[0], capsys)
    expected, found = (
        [
            without_times(r)
            for r in read_metrics(w / "metrics.jsonl")
            if r["kind"] != "event" or r["event"] in ("cutoff_raised", "warning")
        ]
        for w in (straight[0], workdir)
    )
    assert found == expected


def _steps_logged(log) -> int:
    """Whole-run number of the last step that the newest process logged (4 steps an epoch)."""
    text = log.read_text().rsplit(" parameters, ", 1)[-1]
    epochs = re.findall(r" epoch (\d+)/5", text)
    steps = re.findall(r"step (\d+)/4 ", text.rsplit("epoch ", 1)[-1])
    return 4 * int(epochs[-1] if epochs else 0) + int(steps[-1] if steps else 0)


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_finishes_the_step_saves_and_resumes_exactly(arguments, straight, tmp_path, capsys, number):
    workdir, options = tmp_path / "run", [*arguments, f"--workdir={tmp_path / 'run'}"]
    process = start_main(*options)
    for line in process.stdout:
        if "step 2/4" in line:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + number, errors
    assert re.search(r"step \d+ is saved; run the same command", errors)
    assert verify_main(["verify", str(workdir)]) == 0
    capsys.readouterr()
    done = run_main(*options)
    assert done.returncode == 0 and "resuming from step" in done.stdout
    assert hash_of(workdir, capsys) == hash_of(straight[0], capsys)


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


@pytest.fixture
def copy(straight, tmp_path):
    """A copy of the finished run to do things to."""
    shutil.copytree(straight[0], tmp_path / "copy")
    return tmp_path / "copy"


def tree_hash(folder) -> dict:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ("run.log", "lock")}


def test_the_same_command_again_says_finished_and_changes_nothing(arguments, copy):
    before = tree_hash(copy)
    done = run_main(*arguments, f"--workdir={copy}")
    assert done.returncode == 0 and "already finished: 20 steps" in done.stdout
    assert tree_hash(copy) == before


def test_another_architecture_is_refused_field_by_field(arguments, copy):
    before = tree_hash(copy)
    done = run_main(*arguments, f"--workdir={copy}", "--config.model.d_model=32", "--config.lr.base=0.5")
    assert done.returncode == 4
    assert "model.d_model: 16 -> 32" in done.stderr and "lr.base: 0.01 -> 0.5" in done.stderr
    assert tree_hash(copy) == before, "nothing on disk was touched"


def test_more_epochs_on_request(arguments, copy):
    more = [*arguments, f"--workdir={copy}", "--config.train.epochs=6"]
    refused = run_main(*more)
    assert refused.returncode == 4 and "train.epochs: 5 -> 6" in refused.stderr and "resume.allow" in refused.stderr
    done = run_main(*more, "--config.resume.allow=train.epochs")
    assert done.returncode == 0, done.stderr
    records = read_metrics(copy / "metrics.jsonl")
    assert [r["key"] for r in records if r.get("event") == "config_changed"] == ["train.epochs"]
    assert max(r["step"] for r in records if r["kind"] == "train") == 24
    assert json.loads((copy / "config.json").read_text())["train"]["epochs"] == 6


def test_other_data_is_refused(arguments, copy, tmp_path):
    (tmp_path / "other.txt").write_bytes(b"other bytes " * 500)
    done = run_main(*arguments, f"--workdir={copy}", f"--config.data.path={tmp_path / 'other.txt'}")
    assert done.returncode == 4 and "the corpus differs" in done.stderr


def test_a_damaged_step_is_set_aside_and_the_one_before_goes_on(arguments, straight, copy, capsys):
    data = max(
        (copy / "checkpoints" / "20" / "arrays").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert verify_main(["verify", str(copy)]) == 4
    assert f"{data.name}' does not match its manifest" in capsys.readouterr().out
    done = run_main(*arguments, f"--workdir={copy}")
    assert done.returncode == 0 and "resuming from step 15" in done.stdout
    assert hash_of(copy, capsys) == hash_of(straight[0], capsys)
    assert (copy / "quarantine" / "20").is_dir()


def test_when_no_step_is_usable_nothing_starts_over(arguments, copy):
    for manifest in (copy / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    before = tree_hash(copy)
    done = run_main(*arguments, f"--workdir={copy}")
    assert done.returncode == 4 and "no step is usable" in done.stderr and "step 20" in done.stderr
    assert tree_hash(copy) == before


def test_overwrite_moves_the_old_run_aside(arguments, copy):
    done = run_main(
        *arguments,
        f"--workdir={copy}",
        "--overwrite",
        "--config.train.epochs=1",
        "--config.lr.base=0.1",
    )
    assert done.returncode == 0, done.stderr
    assert (copy.with_name("copy.1") / "checkpoints" / "20").is_dir()
    assert json.loads((copy / "config.json").read_text())["lr"]["base"] == 0.1


def test_resume_modes(arguments, copy, tmp_path):
    never = run_main(*arguments, f"--workdir={copy}", "--config.resume.mode=never")
    assert never.returncode == 1 and "is not empty" in never.stderr
    must = run_main(*arguments, f"--workdir={tmp_path / 'new'}", "--config.resume.mode=must")
    assert must.returncode == 4 and "holds no run" in must.stderr and not (tmp_path / "new").exists()


def test_weights_of_a_run_start_another_at_its_cutoff(arguments, copy, tmp_path):
    """Never regress: the new run's ladder begins at 4, the weights come from cutoff 17; its architecture is theirs."""
    options = [f"--workdir={tmp_path / 'new'}", f"--config.init.checkpoint={copy}", "--config.model.d_model=64"]
    done = run_main(*arguments, *options, "--config.train.epochs=1")
    assert done.returncode == 0, done.stderr
    first = next(r for r in read_metrics(tmp_path / "new" / "metrics.jsonl") if r["kind"] == "train")
    old = [r for r in read_metrics(copy / "metrics.jsonl") if r["kind"] == "train"]
    assert first["cutoff"] == 17 and first["loss"] < (old[0]["loss"] + old[-1]["loss"]) / 2
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model"]["d_model"] == 16


def test_a_second_process_is_kept_out(arguments, tmp_path):
    options = [*arguments, f"--workdir={tmp_path / 'run'}", "--config.train.epochs=400"]
    first = start_main(*options)
    try:
        for line in first.stdout:
            if "step 2/4" in line:
                break
        for more in ([], ["--overwrite"]):
            second = run_main(*options, *more)
            assert second.returncode == 5 and f"in use by process {first.pid}" in second.stderr
        assert first.poll() is None and [p.name for p in tmp_path.iterdir()] == ["run"]
    finally:
        first.kill()
        first.communicate()


def test_a_nonfinite_loss_stops_the_run_with_the_facts(arguments, tmp_path):
    options = [*arguments, f"--workdir={tmp_path / 'run'}", "--config.lr.base=1e30", "--config.optim.clip=1e30"]
    done = run_main(*options)
    assert done.returncode == 3, done.stderr
    assert re.search(r"step \d+: loss .* at cutoff 4, LR .* corpus offset \d+", done.stderr)
    event = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r.get("event") == "nonfinite"]
    assert len(event) == 1 and event[0]["cutoff"] == 4 and len(event[0]["offsets"]) == 4
    assert event[0]["lr"] > 1e29, "the rate of the step that failed"


def test_a_first_save_cut_short_starts_over_and_loses_nothing(arguments, straight, copy, capsys):
    for step in (copy / "checkpoints").iterdir():
        if step.name != "15":
            shutil.rmtree(step)
    (copy / "checkpoints" / "15" / "manifest.json").unlink()
    done = run_main(*arguments, f"--workdir={copy}")
    assert done.returncode == 0 and "step 15 was moved to quarantine/: it has no manifest" in done.stdout
    assert hash_of(copy, capsys) == hash_of(straight[0], capsys)
    assert [r["step"] for r in read_metrics(copy / "metrics.jsonl") if r["kind"] == "train"] == list(range(1, 21))
    assert (copy / "samples.txt").read_text().count("=== step") == 5
    assert (copy / "quarantine" / "15").is_dir()


def test_overwrite_moves_nothing_but_runs(arguments, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    done = run_main(*arguments, f"--workdir={tmp_path / 'thesis'}", "--overwrite")
    assert done.returncode == 1 and "holds no run and will not be moved" in done.stderr
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_a_run_from_weights_resumes_without_their_source(arguments, copy, tmp_path):
    options = [*arguments, f"--workdir={tmp_path / 'new'}", f"--config.init.checkpoint={copy}"]
    options += ["--config.model.seq_len=64", "--config.curriculum.ladder=(4,8,'full')"]
    process = start_main(*options)
    for line in process.stdout:
        if "step 2/4" in line:
            process.send_signal(signal.SIGTERM)
            break
    assert "Traceback" not in process.communicate(timeout=100)[1] and process.returncode == 143
    shutil.rmtree(copy)
    done = run_main(*options)
    assert done.returncode == 0, done.stderr
    first = next(r for r in read_metrics(tmp_path / "new" / "metrics.jsonl") if r["kind"] == "train")
    assert first["cutoff"] == 33, "full of 17 bins is full of 33"


def test_a_profile_window_survives_a_stop_inside_it(arguments, tmp_path):
    options = [*arguments, f"--workdir={tmp_path / 'run'}", "--config.profile.start=1", "--config.profile.steps=12"]
    process = start_main(*options)
    for line in process.stdout:
        if "step 4/4" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=100)
    assert process.returncode == 143 and len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    done = run_main(*options)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 2
