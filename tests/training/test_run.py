"""Whole runs through main.py: killed and resumed is the same run; signals, refusals and files on disk."""

import json
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from fftlm_jax.training import run, saved_run
from fftlm_jax.training.metrics import read_metrics
from fftlm_jax.training.verify import main as verify_main
from tests.tiny import run_main, start_main, tiny_values

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
    words = [bytes(random.Random(i).choices(b"abcdefgh ", k=6)) for i in range(40)]
    (folder / "corpus.txt").write_bytes(b" ".join(random.Random(0).choices(words, k=3000)))
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


WAYS_TO_TRAIN = (
    ("minimum phase", {"curriculum__method": "minimum_phase", "curriculum__transition_bins": 2}),
    ("signal", {"curriculum__method": "signal", "objective__positions": "last", "objective__next_byte_weight": 0.0}),
    ("schedule", {"curriculum__rule": "schedule", "curriculum__schedule": ((0, 4), (1, "full"))}),
    ("bfloat16 and dropout", {"model__dtype": "bfloat16", "model__dropout": 0.1, "curriculum__rule": "none"}),
    ("plain blocks", {"model__projections": False, "model__conv_heads": 1, "lr__restart": "pulse"}),
    (
        "next byte, taps, average",
        {"objective__name": "next_byte", "model__kernel_basis": "taps", "optim__ema_decay": 0.9},
    ),
    ("attention, polar memory", {"model__mixer": "attention", "model__memory": "polar", "curriculum__rule": "none"}),
    (
        "muon, radial, cooldown",
        {
            "optim__name": "muon",
            "optim__spectral_lr": (("mixer", 0.1), ("mlp", 0.3)),
            "optim__spectral_normalize": "second_moment",
            "optim__spectral_adaptive": "cosine",
            "optim__spectral_span": (0.1, 0.9),
            "optim__neuron_beta2": 0.9,
            "optim__brake": 0.5,
            "optim__momentum_warmup": 6,
            "train__batch_stages": (1, 3, 2),
            "lr__schedule": "cooldown",
            "lr__restart": "none",
            "lr__base": 0.02,
        },
    ),
    (
        "chunk head, aligned memory",
        {"objective__name": "chunk_head", "model__memory": "aligned", "model__dropout": 0.1},
    ),
)


@pytest.mark.parametrize("case,overrides", WAYS_TO_TRAIN, ids=lambda value: value if isinstance(value, str) else "")
def test_every_way_to_train_learns_and_resumes_exactly(tmp_path, capsys, case, overrides):
    """Trained to the end, then set back to a checkpoint in the middle and trained to the end again."""
    values = tiny_values(train__epochs=3, train__accum_steps=1, model__memory_piece=4, sample__bytes=0, **overrides)
    result = run(values, tmp_path / "run")
    train = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert result["step"] == 12 and result["bpb"] < 8.5
    assert train[-1]["loss"] < train[0]["loss"]
    assert result["cutoff"] == 17 or result["raises"] == 1, "12 steps: one raise by the plateau rule, or the full band"
    assert set_back_and_finished_again(values, tmp_path / "run", capsys)


def test_the_adaptive_factor_survives_a_resume_between_the_raise_and_its_measurement(tmp_path, capsys):
    """Raised before step 6, measured before step 11, set back to step 10."""
    values = tiny_values(train__epochs=3, lr__factor="adaptive", lr__spike_steps=5, sample__bytes=0)

    def events_of(name):
        return [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r.get("event") == name]

    run(values, tmp_path / "run")
    (raised,), (reduced,) = events_of("cutoff_raised"), events_of("lr_reduced")
    losses = {r["step"]: r["loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"}
    before, after = (np.mean([losses[step] for step in steps]) for steps in (range(2, 7), range(7, 12)))
    assert (raised["step"], reduced["step"], reduced["raised_at"]) == (6, 11, 6)
    assert reduced["spike"] == pytest.approx(after - before) and reduced["loss_before"] == pytest.approx(before)
    assert reduced["factor"] == 0.9 and raised["lr_after"] == pytest.approx(1e-2)
    assert reduced["lr_after"] < 0.91 * reduced["lr_before"]
    assert "LR REDUCED: x 0.9" in capsys.readouterr().out
    assert set_back_and_finished_again(values, tmp_path / "run", capsys)
    assert events_of("lr_reduced") == [reduced]


def test_batches_grow_in_stages_and_every_window_is_seen_once(tmp_path, capsys):
    """Stages of 4 steps; the raise before step 6 and the borders before 4 and 8 each get their own compiled step."""
    values = tiny_values(train__epochs=3, train__batch_stages=(1, 2, 3), sample__bytes=0)
    run(values, tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    changes = [(r["step"], r["from"], r["to"]) for r in records if r.get("event") == "batch_changed"]
    assert changes == [(4, 4, 8), (8, 8, 12)]
    assert [(r["step"], r["cutoff"]) for r in records if r.get("event") == "compiled"] == [
        (0, 4),
        (4, 4),
        (6, 8),
        (8, 8),
    ]
    assert "batch: 4 -> 8 windows, 256 bytes a step" in capsys.readouterr().out
    assert set_back_and_finished_again(values, tmp_path / "run", capsys)


def test_the_first_updates_of_opened_coefficients_are_on_record(tmp_path):
    run(tiny_values(train__epochs=3, sample__bytes=0), tmp_path / "run")
    opened = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "opened"]
    assert [r["step"] for r in opened] == list(range(7, 13)), "from the first update after the raise at 6"
    assert all(r["opened_rms"] > 0 and r["older_rms"] > 0 for r in opened)


def set_back_and_finished_again(values, workdir, capsys) -> bool:
    """Removes the last checkpoint, trains to the end once more, and compares the states."""
    straight = hash_of(workdir, capsys)
    shutil.rmtree(workdir / "checkpoints" / "12")
    run(values, workdir)
    assert "resuming from step" in capsys.readouterr().out
    return hash_of(workdir, capsys) == straight


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A next-byte run that ended below the full band, at 8 of 17 bins."""
    workdir = tmp_path_factory.mktemp("backbone") / "run"
    values = tiny_values(train__epochs=3, objective__name="next_byte", model__chunk=1, model__memory="polar")
    assert run(values, workdir)["cutoff"] == 8
    return workdir


def test_a_frozen_backbone_stays_as_it_was_and_the_head_learns(backbone, tmp_path, capsys):
    values = tiny_values(
        train__epochs=3,
        objective__name="chunk_head",
        objective__backbone="frozen",
        init__checkpoint=str(backbone),
        optim__weight_decay=0.5,
    )
    result = run(values, tmp_path / "run")
    assert "the backbone is frozen: the head alone learns, at cutoff 8; no curriculum" in capsys.readouterr().out
    assert result["cutoff"] == 8 and result["raises"] == 0, "frozen coefficients cannot learn what a raise would open"
    before, after = (saved_run.load(folder, "last") for folder in (backbone, tmp_path / "run"))
    head_before, head_after = before.params.pop("head")["kernel"], after.params.pop("head")["kernel"]
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert head_before.shape[0] == 1 and head_after.shape[0] == 4
    assert not np.allclose(head_before[0], head_after[0])
    train = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert train[-1]["chunk_loss"] < train[0]["chunk_loss"]
    assert set_back_and_finished_again(values, tmp_path / "run", capsys)


def test_a_frozen_backbone_keeps_the_method_of_its_cutoff(tmp_path):
    """Kernels trained under another filter are neither masked nor filtered anew."""
    backbone = {"curriculum__method": "minimum_phase", "curriculum__transition_bins": 2, "sample__bytes": 0}
    run(tiny_values(train__epochs=1, objective__name="next_byte", **backbone), tmp_path / "backbone")
    head = {"objective__name": "chunk_head", "objective__backbone": "frozen", "sample__bytes": 0}
    run(tiny_values(train__epochs=1, init__checkpoint=str(tmp_path / "backbone"), **head), tmp_path / "head")
    before, after = (saved_run.load(tmp_path / name, "last") for name in ("backbone", "head"))
    jax.tree.map(np.testing.assert_array_equal, before.params["blocks"], after.params["blocks"])
    assert after.low_pass == before.low_pass and after.low_pass.method == "minimum_phase"


def test_the_average_of_the_weights_is_evaluated_beside_them(tmp_path, capsys):
    """With a decay near 0 the average is the weights themselves; with one near 1 it lags behind."""
    scores = {}
    for decay in (1e-9, 0.9):
        workdir = tmp_path / str(decay)
        values = tiny_values(train__epochs=3, optim__ema_decay=decay, sample__bytes=0)
        scores[decay] = run(values, workdir)
        raw, average = (saved_run.load(workdir, "last", averaged=averaged) for averaged in (False, True))
        if decay < 0.5:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), raw.params, average.params)
    assert scores[1e-9]["ema_bpb"] == pytest.approx(scores[1e-9]["bpb"], abs=1e-4)
    assert scores[0.9]["ema_bpb"] > scores[0.9]["bpb"] + 0.01, "twelve steps in, the average still holds young weights"
    assert scores[0.9]["bpb"] == scores[1e-9]["bpb"], "averaging changes nothing about training"
    assert "ema_bpb=" in capsys.readouterr().out
