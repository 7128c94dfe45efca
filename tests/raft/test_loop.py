"""A whole run: it can die in every phase, be stopped in the middle of sampling and of training, and ends the same."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.generation.terminal import main as generate
from fftlm_jax.raft import engine, fine_tuning, phases
from fftlm_jax.raft.cycle_recorder import RaftRecorder
from fftlm_jax.raft.journal import Journal, arrays_of, bytes_of, rows_of_lines
from fftlm_jax.raft.run_cycles import run
from fftlm_jax.raft.tasks import make_task
from fftlm_jax.runtime.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError
from fftlm_jax.runtime.process import Interrupts
from tests.faults.full_disk import FullDisk
from tests.raft.raft_run import PHASES, WAYS_TO_DIE, Killed, copy_until, die, journal_hashes, raft_values


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nobody disturbs: its folder, its journal's hashes, its final numbers."""
    workdir = tmp_path_factory.mktemp("raft") / "straight"
    numbers = run(raft_values(), workdir)
    return workdir, journal_hashes(workdir), numbers


def test_it_leaves_what_it_promises(straight):
    workdir, _, numbers = straight
    assert numbers["cycle"] == 2
    for name in ("config.json", "env.json", "metrics.jsonl", "run.log", "report.md", "cycles.png", "checkpoints"):
        assert (workdir / name).exists(), name
    records = cycles_on_record(workdir)
    assert [r["cycle"] for r in records] == [0, 1, 2]
    assert all(set(r["seconds"]) >= {"train", "evaluate"} for r in records)


def cycles_on_record(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == "cycle"]


def test_only_verified_answers_are_kept_and_they_come_from_the_samples(straight):
    workdir, _, _ = straight
    task = make_task("add", 1, False)
    for cycle in (1, 2):
        folder = workdir / "cycles" / f"{cycle:04}"
        sampled = {(r["prompt"], r["completion"]) for r in rows_of_lines((folder / "samples.jsonl").read_bytes())}
        kept = rows_of_lines((folder / "kept.jsonl").read_bytes())
        assert kept
        for prompt, completion, ok in kept:
            assert ok and (prompt, completion) in sampled
            assert task.verify(bytes_of(prompt), bytes_of(completion)).ok


def test_micro_batches_change_nothing_and_an_average_is_what_a_training_leaves(straight, tmp_path):
    """Through the config; cycle 0 is supervised fine-tuning."""
    same, average = tmp_path / "same", tmp_path / "average"
    run(raft_values(raft__cycles=0, raft__accum_steps=4, train__skip_nonfinite=1), same)
    run(raft_values(raft__cycles=0, optim__ema_decay=0.99), average)
    reference, in_parts, averaged = (
        json.loads((folder / "cycles" / "0000" / "result.json").read_text())["held_out"]["gold_loss"]
        for folder in (straight[0], same, average)
    )
    assert in_parts == pytest.approx(reference, rel=1e-3)
    assert averaged < 0.9 * reference, "other weights than the last ones: here, at a high rate, better ones"


def test_finished_is_finished(straight, capsys):
    workdir, hashes, numbers = straight
    run(raft_values(), workdir)
    assert "already finished: 2 cycles are done" in capsys.readouterr().out
    assert run(raft_values(), workdir) == numbers
    assert journal_hashes(workdir) == hashes


def test_a_run_that_dies_in_every_phase_ends_as_if_it_had_not(straight, tmp_path, monkeypatch):
    """One run, started 37 times; also no clock reads into its journal, since the other run had another time."""
    for (cycle, name), how in itertools.product(PHASES, WAYS_TO_DIE):
        die(monkeypatch, lambda: run(raft_values(), tmp_path), cycle, name, how)
        file = tmp_path / "cycles" / f"{cycle:04}" / name
        whole = hashlib.sha256(file.read_bytes()).hexdigest() == straight[1][f"{cycle:04}/{name}"]
        assert (whole, Journal(tmp_path).has(cycle, name)) == (how != "half-written", how == "listed"), (file, how)
    run(raft_values(), tmp_path)
    assert journal_hashes(tmp_path) == straight[1]
    assert [r["cycle"] for r in cycles_on_record(tmp_path)] == [0, 1, 2]


def test_interrupted_while_training_and_while_sampling_it_goes_on_within_both(straight, tmp_path, monkeypatch):
    restored, restore = [], fine_tuning._restore
    asked, complete = [], engine.complete
    monkeypatch.setattr(fine_tuning, "_restore", lambda *a: restored.append(restore(*a)) or restored[-1])
    monkeypatch.setattr(engine, "complete", lambda *a, **k: asked.append(k["first_batch"]) or complete(*a, **k))
    request = _handler(monkeypatch)

    def interrupted(number, unit, done, message):
        """Runs until a signal is said to have come there; the exit code, and what this start went on from."""
        restored.clear(), asked.clear()
        with (
            _progress(monkeypatch, lambda *now: now == (done, unit) and request(number)),
            pytest.raises(Interrupted, match=message) as error,
        ):
            run(raft_values(), tmp_path)
        return error.value.exit_code

    assert interrupted(signal.SIGINT, "steps", 7, "SIGINT while training in cycle 0") == 130
    assert interrupted(signal.SIGTERM, "samples", 64, "SIGTERM while sampling in cycle 1") == 143
    assert restored[0][1] == 7, "the steps before the snapshot are not made again"
    assert interrupted(signal.SIGINT, "steps", 2, "SIGINT while training in cycle 1") == 130
    assert asked[0] == 2, "the two batches that were sampled are not sampled again"
    restored.clear()
    run(raft_values(), tmp_path)
    assert restored[0][1] == 2
    assert journal_hashes(tmp_path) == straight[1]


@contextlib.contextmanager
def _progress(monkeypatch, watch):
    """Calls `watch(done, unit)` wherever a run says how far it is."""
    with monkeypatch.context() as patch:
        patch.setattr(RaftRecorder, "progress", lambda self, done, total, unit: watch(done, unit))
        yield


def test_a_disk_too_full_for_metrics_and_the_report_ends_no_run(straight, tmp_path, monkeypatch, capsys):
    FullDisk(monkeypatch).full = True
    run(raft_values(), tmp_path)
    assert journal_hashes(tmp_path) == straight[1]
    assert "WARNING: report.md cannot be written" in capsys.readouterr().out


def _handler(monkeypatch):
    """A function that does what a signal does to the run under way."""
    current = []
    enter = Interrupts.__enter__
    monkeypatch.setattr(Interrupts, "__enter__", lambda self: current.append(self) or enter(self))

    def request(number):
        current[-1].requested = number

    return request


def test_another_config_is_refused_and_more_cycles_are_allowed_on_request(straight, tmp_path):
    run(raft_values(raft__cycles=1), tmp_path)
    with pytest.raises(CheckpointError, match=r"raft.samples: 4 -> 5"):
        run(raft_values(raft__samples=5, raft__cycles=1), tmp_path)
    run(raft_values(resume__allow=("raft.cycles",)), tmp_path)
    assert journal_hashes(tmp_path) == straight[1]


def test_a_changed_file_of_a_finished_cycle_is_refused(straight, tmp_path):
    workdir = copy_until(straight[0], tmp_path / "run", 0)
    file = workdir / "cycles" / "0000" / "weights.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="0000/weights.npz is missing or was changed"):
        run(raft_values(), workdir)
    assert file.read_bytes() == bytes(content)


def _weights(workdir, cycle):
    return arrays_of((workdir / "cycles" / f"{cycle:04}" / "weights.npz").read_bytes())


def test_adapters_leave_the_first_weights_alone(straight):
    """Cycles write adapters only; the base that they are beside is read from cycle 0, whose hash never changes."""
    workdir, hashes, _ = straight
    names = {name.rpartition(":")[2] for name in _weights(workdir, 2) if not name.startswith("steps/")}
    assert names == {"a", "b"}
    assert json.loads((workdir / "cycles/0000/phases.json").read_text())["weights.npz"] == hashes["0000/weights.npz"]


def _kept(workdir, cycle):
    return rows_of_lines((workdir / "cycles" / f"{cycle:04}" / "kept.jsonl").read_bytes())


def _model(workdir, cycle, start="continue"):
    """The whole weights after a cycle, put together by hand: alpha / r is 16."""
    arrays = {name: a.copy() for name, a in _weights(workdir, 0).items() if not name.startswith("steps/")}
    for used in range(1, cycle + 1) if start == "merge" else [cycle]:
        adapters = _weights(workdir, used)
        for name in [name.removesuffix(":a") for name in adapters if name.endswith(":a")]:
            arrays[name] = arrays[name] + 16 * adapters[f"{name}:a"] @ adapters[f"{name}:b"]
    return arrays


@pytest.mark.parametrize("start", ("continue", "restart", "merge"))
def test_start_policies(tmp_path, monkeypatch, start):
    begun, trained_on = [], []
    fit, rows_of = engine.fit, engine.rows_of

    def fit_and_note(step, base, trained, *args, **kwargs):
        begun.append((jax.tree.map(np.asarray, base), jax.tree.map(np.asarray, trained)))
        return fit(step, base, trained, *args, **kwargs)

    monkeypatch.setattr(engine, "fit", fit_and_note)
    monkeypatch.setattr(engine, "rows_of", lambda pairs, width: trained_on.append(pairs) or rows_of(pairs, width))
    run(raft_values(raft__start=start, raft__on_regress="continue"), tmp_path)
    kept = [{(bytes_of(p), bytes_of(c)) for p, c, _ in _kept(tmp_path, n)} for n in (1, 2)]
    cycles = [set(pairs) for pairs in trained_on if pairs and len(pairs) not in (30, 15)]
    assert cycles == [kept[0], kept[0] | kept[1] if start == "restart" else kept[1]]
    base, adapters = begun[2]
    fresh = all(not pair["b"].any() for pair in adapters.values())
    assert fresh == (start != "continue")
    wanted = _model(tmp_path, 1, start) if start == "merge" else _weights(tmp_path, 0)
    np.testing.assert_allclose(base["blocks"]["mlp"]["w_up"]["kernel"], wanted["blocks/mlp/w_up/kernel"], atol=1e-5)
    last = saved_run.load(tmp_path, "last")
    found = _model(tmp_path, last.step, start) if last.step else _weights(tmp_path, 0)
    np.testing.assert_allclose(
        last.params["blocks"]["mlp"]["w_up"]["kernel"], found["blocks/mlp/w_up/kernel"], atol=1e-5
    )


@pytest.fixture
def supervised(straight, tmp_path):
    """The folder of a run whose cycle 0 is done: what cycles do otherwise begins behind it."""
    return copy_until(straight[0], tmp_path / "supervised", 0)


def other_cycles(**overrides):
    """The config of a run that goes on from cycle 0 with other settings."""
    return raft_values(resume__allow=("raft",), **overrides)


def test_a_rollback_samples_and_starts_from_the_best_cycle(supervised, monkeypatch):
    rates = iter([0.9, 0.1, 0.2])
    real = phases.score_held_out
    monkeypatch.setattr(
        phases, "score_held_out", lambda *a, **k: dataclasses.replace(real(*a, **k), rate=next(rates), se=0.01)
    )
    read, weights = [], Journal.weights
    monkeypatch.setattr(Journal, "weights", lambda self, cycle: read.append(cycle) or weights(self, cycle))
    run(other_cycles(raft__cycles=3), supervised)
    assert read.count(2) == 1, "cycle 2 is evaluated, and nothing goes on from it"
    plans = [json.loads((supervised / f"cycles/000{n}/plan.json").read_text()) for n in range(4)]
    assert [plan["parent"] for plan in plans] == [0, 0, 1, 1]
    assert plans[3]["lr"] == pytest.approx(0.7 * plans[2]["lr"])
    assert plans[3]["parent_weights"] == plans[2]["parent_weights"] != plans[1]["parent_weights"]
    assert saved_run.load(supervised, "best").step == 1


def test_anchors_are_labelled_problems_in_the_share_asked_for(tmp_path, monkeypatch):
    trained_on, rows_of = [], engine.rows_of
    monkeypatch.setattr(engine, "rows_of", lambda pairs, width: trained_on.append(pairs) or rows_of(pairs, width))
    run(raft_values(raft__anchor=0.5, raft__cycles=1), tmp_path)
    labelled = set(trained_on[0])
    mixed = next(pairs for pairs in trained_on[1:] if set(pairs) & labelled and len(pairs) != len(labelled))
    kept = len(_kept(tmp_path, 1))
    assert len(mixed) == 2 * kept and sum(pair in labelled for pair in mixed) == kept


def test_a_budget_per_cycle_holds_its_last_value(supervised):
    run(other_cycles(raft__budget=(2, 1), raft__cycles=2, raft__on_regress="continue"), supervised)
    assert [len(_kept(supervised, n)) for n in (1, 2)] == [2, 1]


def test_longer_sums_come_when_the_hardest_are_mastered(tmp_path):
    values = raft_values(raft__task="add_long", raft__size=3, raft__sft_examples=20, raft__level_rate=0.0)
    run(values, tmp_path)
    plans = [json.loads((tmp_path / f"cycles/000{n}/plan.json").read_text()) for n in (1, 2)]
    assert [plan["level"] for plan in plans] == [2, 3]
    longest = [
        max(len(row["prompt"]) for row in rows_of_lines((tmp_path / f"cycles/000{n}/samples.jsonl").read_bytes()))
        for n in (1, 2)
    ]
    assert longest == [len("12+34="), len("123+456=")]


def test_a_nonfinite_loss_ends_the_run_and_saves_nothing_of_it(tmp_path):
    with pytest.raises(NonFiniteError, match="Move cycles/0000 away"):
        run(raft_values(raft__sft_lr=1e30, optim__clip=1e30), tmp_path)
    assert not (tmp_path / "cycles/0000/weights.npz").exists()


def test_settings_of_a_cycle_under_way_cannot_change(straight, tmp_path):
    workdir = copy_until(straight[0], tmp_path / "run", 1, ("plan.json", "samples.jsonl"))
    changed = raft_values(raft__samples=5, resume__allow=("raft",))
    with pytest.raises(CheckpointError, match="begun under another plan"):
        run(changed, workdir)
    with pytest.raises(CheckpointError, match="raft.prompts: 30 -> 29"):
        run(raft_values(raft__prompts=29, resume__allow=("raft",)), workdir)


def test_overwriting_begins_from_its_own_origin_and_not_from_the_old_runs(straight, tmp_path):
    copy_until(straight[0], tmp_path / "run", 0)
    options = {"init__checkpoint": str(straight[0]), "raft__sft_epochs": 0, "raft__cycles": 0}
    numbers = run(raft_values(**options), tmp_path / "run", overwrite=True)
    assert numbers["start_rate"] == straight[2]["best_rate"]
    origins = [json.loads((w / "cycles/0000/plan.json").read_text())["origin"] for w in tmp_path.iterdir()]
    assert len({origin["weights"] for origin in origins}) == 2


def test_weights_that_changed_before_they_were_trained_on_are_refused(straight, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(straight[0], source)
    values = raft_values(init__checkpoint=str(source), raft__cycles=0)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "fit", lambda *a, **k: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(values, tmp_path / "run")
    run(raft_values(seed=1, raft__cycles=0, raft__sft_epochs=1), tmp_path / "other")
    shutil.rmtree(source / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", source / "checkpoints")
    with pytest.raises(CheckpointError, match="changed since this run began"):
        run(values, tmp_path / "run")


def test_a_run_does_not_need_its_origin_any_more(straight, tmp_path):
    """Nor may that have dealt its problems otherwise."""
    source = tmp_path / "source"
    shutil.copytree(straight[0], source)
    options = {"init__checkpoint": str(source), "raft__sft_epochs": 0}
    with pytest.raises(ConfigError, match="seed 0 -> 1"):
        run(raft_values(seed=1, **options), tmp_path / "other")
    run(raft_values(raft__cycles=1, **options), tmp_path / "run")
    shutil.rmtree(source)
    assert run(raft_values(raft__cycles=2, resume__allow=("raft.cycles",), **options), tmp_path / "run")["cycle"] == 2


def test_all_weights_can_be_trained(tmp_path):
    run(raft_values(raft__trained="full", raft__cycles=1), tmp_path)
    before, after = _weights(tmp_path, 0), _weights(tmp_path, 1)
    assert set(before) == {name for name in after if not name.startswith("steps/")}
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_the_control_keeps_as_many_as_the_verifier_would(straight, supervised):
    run(other_cycles(raft__filter="random", raft__cycles=1), supervised)
    kept = [_kept(workdir, 1) for workdir in (straight[0], supervised)]
    samples = [(workdir / "cycles/0001/samples.jsonl").read_bytes() for workdir in (straight[0], supervised)]
    assert samples[0] == samples[1]
    assert len(kept[0]) == len(kept[1]) and not all(ok for _, _, ok in kept[1])


def test_the_best_cycle_is_a_model_to_generate_with(straight, capsys):
    workdir, _, numbers = straight
    saved = saved_run.load(workdir, "best")
    assert saved.step == numbers["best"]
    assert generate([f"--workdir={workdir}", "--prompt=1+2=", "--bytes=3", "--temperature=0"]) == 0
    assert capsys.readouterr().out.startswith("1+2=")


def test_a_run_can_start_from_a_run(straight, tmp_path):
    """Adapters on the weights of another run: without supervised training, cycle 0 is that run's best cycle."""
    workdir, _, numbers = straight
    values = raft_values(init__checkpoint=str(workdir), raft__sft_epochs=0, raft__cycles=0)
    assert run(values, tmp_path)["start_rate"] == numbers["best_rate"]
    found, wanted = _weights(tmp_path, 0), saved_run.load(workdir, "best").params
    np.testing.assert_allclose(found["head/kernel"], np.asarray(wanted["head"]["kernel"]))
    assert sum(array.size for name, array in found.items() if not name.startswith("steps/")) == sum(
        leaf.size for leaf in jax.tree.leaves(wanted)
    )


@pytest.mark.parametrize(
    "message,overrides",
    (
        ("config.curriculum.rule", {"curriculum__rule": "plateau"}),
        ("config.objective.name", {"objective__name": "chunk", "model__chunk": 4}),
        ("config.raft.sft_trained", {"raft__sft_trained": "lora"}),
        ("config.raft.sft_epochs", {"raft__sft_epochs": 0}),
        ("config.raft.lora_targets: 'w_q' is no matrix", {"raft__lora_targets": ("w_q",)}),
        ("config.raft.temperature", {"raft__temperature": 0.0}),
        ("config.raft.lr_rates: is empty", {"raft__lr": "manual"}),
        ("config.raft.lr_rates: raft.lr 'constant' is another", {"raft__lr_rates": (1e-3,)}),
        ("config.raft.lr_yaml: raft.lr 'step' is another", {"raft__lr": "step", "raft__lr_yaml": "learning_rate: 1"}),
        ("config.raft.budget", {"raft__budget": (3, -1)}),
        ("config.raft.reversed_answer", {"raft__task": "sort", "raft__reversed_answer": True}),
        ("hold none of level 3", {"raft__task": "add_long", "raft__size": 9, "raft__prompts": 2, "model__seq_len": 32}),
        ("config.raft.lr_yaml: missing.yaml cannot be read", {"raft__lr_yaml": "missing.yaml"}),
        ("config.raft.lr_yaml: learning_rat", {"raft__lr_yaml": "learning_rat: 5e-5"}),
        ("config.raft.size", {"raft__task": "dyck", "raft__size": 7}),
        ("config.raft.task: must be one of add, .*did you mean 'dyck'", {"raft__task": "dick"}),
        ("config.raft.prompts", {"raft__prompts": 10**6}),
        ("config.model.seq_len: a question and its answer take", {"raft__size": 8}),
    ),
)
def test_bad_configs_are_refused_before_anything_is_written(tmp_path, message, overrides):
    with pytest.raises(ConfigError, match=message):
        run(raft_values(**overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_cards_snippets_load_as_they_stand(tmp_path):
    from fftlm_jax.raft.raft_parts import schedule_of, with_yaml_text
    from fftlm_jax.training.run_parts import config_of

    snippets = {
        "training:\n  learning_rate: 5e-5  # same all cycles\n": [5e-5, 5e-5, 5e-5],
        "training:\n  base_learning_rate: 5e-5\n  lr_decay_factor: 0.85\n": [5e-5, 4.25e-5, 3.6125e-5],
        "training:\n  learning_rate_schedule:\n    cycle_1: 5.0e-5\n    cycle_2: 4.0e-5\n    cycle_3: 3.0e-5\n": [
            5e-5, 4e-5, 3e-5,
        ],
    }  # fmt: skip
    # Longer than a file name may be, and still text.
    snippets[f"training:\n  base_learning_rate: 5e-5\n  lr_decay_factor: 0.6\n# {'x' * 300}\n"] = [5e-5, 3e-5, 1.8e-5]
    for number, (snippet, rates) in enumerate(snippets.items()):
        file = tmp_path / f"{number}.yaml"
        file.write_text(snippet)
        for source in (snippet, str(file)):
            schedule = schedule_of(with_yaml_text(config_of(raft_values(raft__lr_yaml=source))))
            assert [schedule(n) for n in (1, 2, 3)] == pytest.approx(rates, rel=1e-12)
