"""Sweeps: which trials there are, that failures stay alone, that nothing is trained twice, and what the table says."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import chunk_lm, sweep
from experiments.arm_statistics import compare_arms, mean_interval
from experiments.outcomes import Outcome, outcome_of
from experiments.sweep import report
from experiments.trials import Trial, parse_arm, parse_grid, trials_of

CONFIG_FILE = """
from tests.tiny import tiny_values

def get_config():
    small = {"model__n_layers": 1, "model__projections": False, "model__chunk": 1, "objective__name": "next_byte"}
    return tiny_values(**small, train__accum_steps=1, train__epochs=1, curriculum__rule="none", sample__bytes=0)
"""


def test_trials_are_the_product_of_arms_points_and_seeds():
    found = trials_of([("a", ()), ("b", ("x=1",))], [("lr.base", ("1e-3", "2e-3"))], (0, 1))
    assert len(found) == 8
    assert [t.seed for t in found] == [0] * 4 + [1] * 4, "whole comparisons first"
    assert found[3] == Trial("b lr.base=2e-3", ("x=1", "lr.base=2e-3"), 0)
    assert found[3].name == "b_lr.base_2e-3-seed0"
    assert parse_arm("b: x=1 y=2") == ("b", ("x=1", "y=2")) and parse_arm("plain") == ("plain", ())


def test_values_in_brackets_stay_whole():
    assert parse_arm("a: lr.stages=(('rest', 1.0, 0.05),) x=1")[1] == ("lr.stages=(('rest', 1.0, 0.05),)", "x=1")
    assert parse_grid("s=(0.0,0.5),(0.5,1.0)") == ("s", ["(0.0,0.5)", "(0.5,1.0)"])
    for bad in ("a: x", "a: =1", "a: x="):
        with pytest.raises(ValueError, match="is not key=value"):
            parse_arm(bad)
    with pytest.raises(ValueError, match="is not key=v1,v2"):
        parse_grid("lr.base")


def test_trials_never_share_a_folder():
    with pytest.raises(ValueError, match="name the arms apart"):
        trials_of([("a b", ()), ("a_b", ())], [], (0,))


def outcomes(table):
    return [
        Outcome(Trial(arm, (), seed), "finished", {"bpb": value})
        for arm, values in table.items()
        for seed, value in enumerate(values)
    ]


def test_the_table_ranks_and_compares_on_the_same_seeds():
    table = {"base": (2.0, 2.2, 2.4), "better": (1.9, 2.1, 2.3), "once": (2.5,)}
    rows = {row.arm: row for row in compare_arms(sweep.values_by_arm(outcomes(table), "bpb"), "base")}
    assert list(rows) == ["better", "base", "once"]
    assert rows["better"].difference == pytest.approx(-0.1)
    assert rows["better"].interval == pytest.approx((-0.1, -0.1)), "paired: the spread of the seeds cancels"
    assert rows["base"].difference is None and rows["base"].sd == pytest.approx(0.2)
    assert rows["once"].difference == pytest.approx(0.5) and rows["once"].interval is None
    text = report([*outcomes(table), Outcome(Trial("bad", (), 0), "failed", {}, "exit code 1: why")], "bpb", "base")
    assert "| 1 | better | 2.1000 | 0.2000 | 3 | -0.1000" in text and "bad-seed0: failed exit code 1: why" in text


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for count in (3, 12):
        samples = rng.normal(size=(400, count))
        covered = np.mean([low <= 0 <= high for low, high in map(mean_interval, samples)])
        assert 0.87 < covered < 0.99, count


def test_a_sweep_goes_on_after_a_failure_and_trains_nothing_twice(tmp_path, capsys):
    (tmp_path / "tiny_sweep.py").write_text(CONFIG_FILE)
    options = [f"--config={tmp_path / 'tiny_sweep.py'}", f"--out={tmp_path / 'out'}"]
    options += ["--arm=broken: model.d_model=-1", "--arm=good"]
    assert sweep.main([*options, "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("1  good-seed0")
    assert sweep.main([*options, "--jobs=2"]) == 1
    output = capsys.readouterr().out
    assert "broken-seed0: failed exit code 1: ConfigError: config.model.d_model" in output
    assert "good-seed0: finished bpb=" in output
    metrics = tmp_path / "out" / "good-seed0" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    assert sweep.main([*options, "--report"]) == 1
    assert sweep.main([*options, "--index=1"]) == 0
    assert metrics.stat().st_mtime_ns == before
    changed = [option.replace("--arm=good", "--arm=good: lr.base=0.5") for option in options]
    assert sweep.main([*changed, "--index=1"]) == 1
    assert "good-seed0: other settings overrides differ from what was run" in capsys.readouterr().out
    assert metrics.stat().st_mtime_ns == before
    assert sweep.main([*options, "--report"]) == 1
    written = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert [t["status"] for t in written] == ["failed", "finished"] and written[1]["bpb"] > 0
    assert "| 1 | good |" in (tmp_path / "out" / "REPORT.md").read_text()


@pytest.mark.parametrize(
    "arguments,message",
    ((["--index=5"], "outside 0..0"), (["--baseline=x"], "is no arm"), (["--grid=x"], "is not key=v1,v2")),
)
def test_bad_options_are_said(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        sweep.main([f"--config={tmp_path}", f"--out={tmp_path / 'out'}", *arguments])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option,message",
    (("--config=none.py", "--config: none.py is no file"), ("--arm=", "has no name"), ("--arm=: x=1", "has no name")),
)
def test_what_no_trial_could_be_run_with_is_refused_before_anything_is_written(tmp_path, capsys, option, message):
    with pytest.raises(SystemExit):
        sweep.main(["--config=configs/tiny.py", f"--out={tmp_path / 'out'}", option])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_trial_that_never_ran_is_said_to_be_so(tmp_path):
    assert outcome_of(Trial("a", (), 0), tmp_path).status == "not run"


CONFIG = {"train": {"steps_per_epoch": 2, "epochs": 2}}
EVALUATION = '{"kind": "eval", "step": 4, "bpb": 2.0}\n'


def finished_trial(folder, **contents):
    """The folder of a sweep with one finished trial, `a-seed0`; `contents` take the place of its files."""
    files = {
        "trial": json.dumps({"config": "c.py", "overrides": [], "seed": 0}),
        "config": json.dumps(CONFIG),
        "metrics": EVALUATION,
        "manifest": "{}",
        **contents,
    }
    places = {
        "trial": "a-seed0.trial.json",
        "config": "a-seed0/config.json",
        "metrics": "a-seed0/metrics.jsonl",
        "manifest": "a-seed0/checkpoints/4/manifest.json",
    }
    for name, place in places.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(files[name])
    return folder


JUNK = ("", '{"a', "[1]", "null", "{}", '{"train": 3}', "[" * 100_000)


@pytest.mark.parametrize("file", ("trial", "config", "metrics"))
@pytest.mark.parametrize("content", JUNK, ids=range(len(JUNK)))
def test_a_file_of_a_trial_that_does_not_tell_is_named_and_nothing_is_run(tmp_path, capsys, monkeypatch, file, content):
    folder = finished_trial(tmp_path, **{file: content})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(sweep, "Children", no_children)
    (outcome,) = sweep.run_all("c.py", [Trial("a", (), 0)], folder)
    assert outcome.status == "unreadable" and outcome.reason.count("\n") == 0
    assert outcome.reason.startswith(str(folder / "a-seed0")) and f".json{'l' * (file == 'metrics')} " in outcome.reason
    assert f"[1/1] a-seed0: unreadable {folder}" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_children(jobs):
    """In the place of `Children`, whose processes nobody may start here."""
    return contextlib.nullcontext(SimpleNamespace(running={}, has_room=True))


def test_a_finished_trial_is_one_until_a_file_of_it_is_spoilt(tmp_path):
    """So that the test above can fail; and the settings that a launch left half written are no obstacle."""
    folder, trial = finished_trial(tmp_path), Trial("a", (), 0)
    assert outcome_of(trial, folder, "c.py").status == "finished"
    assert outcome_of(trial, folder, "d.py").status == "other settings"
    (folder / "b-seed0.trial.json").write_text('{"config')
    assert outcome_of(Trial("b", (), 0), folder, "c.py").status == "not run"


@pytest.mark.parametrize("out", ("file", "file/below", "/proc/none"))
@pytest.mark.parametrize("option", ((), ("--index=0",)))
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path, capsys, out, option):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SystemExit) as ended:
        sweep.main(["--config=configs/tiny.py", f"--out={tmp_path / out}", *option])
    assert ended.value.code == 1
    assert f"--out: {tmp_path / out} cannot be written (" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("out", ("typo", "."))
def test_a_report_of_a_folder_without_the_sweep_is_refused_and_writes_nothing(tmp_path, capsys, out):
    (tmp_path / "REPORT.md").write_text("precious")
    with pytest.raises(SystemExit) as ended:
        sweep.main(["--config=configs/tiny.py", f"--out={tmp_path / out}", "--report"])
    assert ended.value.code == 1 and "holds none of these trials" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["REPORT.md"]
    assert (tmp_path / "REPORT.md").read_text() == "precious"


def test_a_name_that_no_folder_can_have_is_refused_before_anything_is_written(tmp_path, capsys):
    options = ["--config=configs/tiny.py", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        sweep.main([*options, f"--arm={'x' * 300}"])
    assert "is too long for a folder" in capsys.readouterr().err and not (tmp_path / "out").exists()
    longest = trials_of([("x" * 224, ())], [], (0,))[0].name
    (tmp_path / f"{longest}.trial.json.tmp").touch()
    with pytest.raises(ValueError, match="is too long for a folder"):
        trials_of([("x" * 225, ())], [], (0,))


@pytest.mark.parametrize("arm", chunk_lm.ARMS)
def test_every_arm_of_the_chunk_experiment_is_a_valid_config(arm):
    assert chunk_lm.config_of(chunk_lm.ARMS[arm]).optim.name == "adamw"


def test_faster_arms_get_more_steps():
    ms = {arm: 50.0 if arm == "plain block" else 100.0 for arm in chunk_lm.ARMS if arm not in chunk_lm.STEPS_OF}
    planned = {t.arm: t for t in chunk_lm.trials(ms, seconds=60, seeds=1)}
    assert "train.steps_per_epoch=150" in planned["plain block"].overrides
    assert "train.steps_per_epoch=75" in planned[chunk_lm.BASE].overrides
    assert planned["attention, steps of base"].overrides[2:] == planned[chunk_lm.BASE].overrides
