"""A whole run: it can be killed after every phase, in the middle of sampling and of training, and ends the same."""

import itertools
import json
import signal

import jax
import numpy as np
import pytest

from fftlm_jax.errors import CheckpointError, ConfigError, Interrupted
from fftlm_jax.generation.cli import main as generate
from fftlm_jax.raft import fitting, phases
from fftlm_jax.raft.journal import Journal, arrays_of, bytes_of, rows_of_lines
from fftlm_jax.raft.loop import run
from fftlm_jax.raft.tasks import make_task
from fftlm_jax.training import saved_run
from fftlm_jax.training.interrupts import Interrupts
from tests.raft.raft_run import journal_hashes, raft_values


class Killed(BaseException):
    """Stands for a process that ends without a word."""


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
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["cycle"] for r in records if r["kind"] == "cycle"] == [0, 1, 2]
    assert all(set(r["seconds"]) >= {"train", "evaluate"} for r in records if r["kind"] == "cycle")


def test_no_clock_reads_into_the_journal(straight):
    workdir, hashes, _ = straight
    run(raft_values(), workdir.with_name("again"))
    assert journal_hashes(workdir.with_name("again")) == hashes


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


def test_finished_is_finished(straight):
    workdir, hashes, numbers = straight
    assert run(raft_values(), workdir) == numbers
    assert journal_hashes(workdir) == hashes


PHASES = [
    *[(0, name) for name in ("plan.json", "weights.npz", "result.json")],
    *[(1, name) for name in ("plan.json", "samples.jsonl", "verdicts.jsonl", "kept.jsonl")],
    *[(1, name) for name in ("weights.npz", "result.json")],
    *[(2, name) for name in ("samples.jsonl", "weights.npz")],
]  # fmt: skip


@pytest.mark.parametrize(
    "cycle,name,when",
    [(*phase, "before it is listed") for phase in PHASES] + [(*phase, "after it") for phase in PHASES[1::3]],
    ids=lambda v: str(v),
)
def test_killed_at_every_phase(straight, tmp_path, monkeypatch, cycle, name, when):
    once = Journal.once

    def killing(self, at, phase, make):
        if (at, phase) == (cycle, name) and when == "before it is listed":
            self.folder(at).mkdir(parents=True, exist_ok=True)
            (self.folder(at) / phase).write_bytes(make()[:-3])  # Half-written, as a crash might leave it.
            raise Killed
        content = once(self, at, phase, make)
        if (at, phase) == (cycle, name):
            raise Killed
        return content

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "once", killing)
        with pytest.raises(Killed):
            run(raft_values(), tmp_path)
    run(raft_values(), tmp_path)
    assert journal_hashes(tmp_path) == straight[1]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["cycle"] for r in records if r["kind"] == "cycle"] == [0, 1, 2]


def test_interrupted_while_sampling_it_goes_on_within_the_phase(straight, tmp_path, monkeypatch):
    asked = []
    real = phases.complete

    def counting(*args, **kwargs):
        asked.append(kwargs["first_batch"])
        return real(*args, **kwargs)

    count = itertools.count()

    def interrupt(self, done, total, unit):
        if unit == "samples" and next(count) == 1:
            request(signal.SIGTERM)

    request = _handler(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("fftlm_jax.raft.recorder.RaftRecorder.progress", interrupt)
        with pytest.raises(Interrupted, match="SIGTERM while sampling in cycle 1"):
            run(raft_values(), tmp_path)
    monkeypatch.setattr(phases, "complete", counting)
    run(raft_values(), tmp_path)
    assert 2 in asked, "the two batches that were sampled are not sampled again"
    assert journal_hashes(tmp_path) == straight[1]


def test_interrupted_while_training_it_goes_on_from_the_snapshot(straight, tmp_path, monkeypatch):
    def interrupt(self, done, total, unit):
        if unit == "steps" and done == 7:
            request(signal.SIGINT)

    request = _handler(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("fftlm_jax.raft.recorder.RaftRecorder.progress", interrupt)
        with pytest.raises(Interrupted, match="SIGINT while training in cycle 0") as error:
            run(raft_values(), tmp_path)
    assert error.value.exit_code == 130
    restored, restore = [], fitting._restore
    monkeypatch.setattr(fitting, "_restore", lambda *a: restored.append(restore(*a)) or restored[-1])
    run(raft_values(), tmp_path)
    assert restored[0][1] == 7
    assert journal_hashes(tmp_path) == straight[1]


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
        run(raft_values(raft__samples=5), tmp_path)
    run(raft_values(resume__allow=("raft.cycles",)), tmp_path)
    assert journal_hashes(tmp_path) == straight[1]


def test_a_changed_file_of_a_finished_cycle_is_refused(tmp_path):
    run(raft_values(raft__cycles=0), tmp_path)
    file = tmp_path / "cycles" / "0000" / "weights.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="0000/weights.npz is missing or was changed"):
        run(raft_values(raft__cycles=1, resume__allow=("raft.cycles",)), tmp_path)
    assert file.read_bytes() == bytes(content)


def _weights(workdir, cycle):
    return arrays_of((workdir / "cycles" / f"{cycle:04}" / "weights.npz").read_bytes())


def test_adapters_leave_the_first_weights_alone(straight):
    """Cycles write adapters only; the base that they are beside is read from cycle 0, whose hash never changes."""
    workdir, hashes, _ = straight
    names = {name.rpartition(":")[2] for name in _weights(workdir, 2) if not name.startswith("steps/")}
    assert names == {"a", "b"}
    assert json.loads((workdir / "cycles/0000/phases.json").read_text())["weights.npz"] == hashes["0000/weights.npz"]


@pytest.mark.parametrize("start", ("restart", "merge"))
def test_start_policies(straight, tmp_path, start):
    workdir, _, _ = straight
    run(raft_values(raft__start=start), tmp_path)
    once, again = _weights(tmp_path, 1), _weights(workdir, 1)
    for name in once:  # The first cycle has nothing to go on from, whatever the policy.
        np.testing.assert_array_equal(once[name], again[name])
    a = [name for name in once if name.endswith(":a")]
    second = _weights(tmp_path, 2)
    assert any(not np.array_equal(second[name], _weights(workdir, 2)[name]) for name in a)


def test_all_weights_can_be_trained(tmp_path):
    run(raft_values(raft__trained="full", raft__cycles=1), tmp_path)
    before, after = _weights(tmp_path, 0), _weights(tmp_path, 1)
    assert set(before) == {name for name in after if not name.startswith("steps/")}
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_the_control_keeps_as_many_as_the_verifier_would(straight, tmp_path):
    workdir, _, _ = straight
    run(raft_values(raft__filter="random", raft__cycles=1), tmp_path)
    kept = [rows_of_lines((w / "cycles/0001/kept.jsonl").read_bytes()) for w in (workdir, tmp_path)]
    samples = [(w / "cycles/0001/samples.jsonl").read_bytes() for w in (workdir, tmp_path)]
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
        ("config.raft.lr_yaml: missing.yaml cannot be read", {"raft__lr_yaml": "missing.yaml"}),
        ("config.raft.lr_yaml: learning_rat", {"raft__lr_yaml": "learning_rat: 5e-5"}),
        ("config.raft.size", {"raft__task": "dyck", "raft__size": 7}),
        ("config.raft.prompts", {"raft__prompts": 10**6}),
        ("config.model.seq_len: a question and its answer take", {"raft__size": 8}),
    ),
)
def test_bad_configs_are_refused_before_anything_is_written(tmp_path, message, overrides):
    with pytest.raises(ConfigError, match=message):
        run(raft_values(**overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_cards_snippets_load_as_they_stand(tmp_path):
    from fftlm_jax.raft.setup import schedule_of
    from fftlm_jax.training.setup import config_of

    snippets = {
        "training:\n  learning_rate: 5e-5  # same all cycles\n": [5e-5, 5e-5, 5e-5],
        "training:\n  base_learning_rate: 5e-5\n  lr_decay_factor: 0.85\n": [5e-5, 4.25e-5, 3.6125e-5],
        "training:\n  learning_rate_schedule:\n    cycle_1: 5.0e-5\n    cycle_2: 4.0e-5\n    cycle_3: 3.0e-5\n": [
            5e-5, 4e-5, 3e-5,
        ],
    }  # fmt: skip
    for number, (snippet, rates) in enumerate(snippets.items()):
        file = tmp_path / f"{number}.yaml"
        file.write_text(snippet)
        for source in (snippet, str(file)):
            schedule = schedule_of(config_of(raft_values(raft__lr_yaml=source)))
            assert [schedule(n) for n in (1, 2, 3)] == pytest.approx(rates, rel=1e-12)
