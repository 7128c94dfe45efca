"""Ways to train, each in this process: all learn, and set back to a checkpoint they end as they had ended."""

import shutil

import jax
import numpy as np
import pytest

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.training import run
from tests.tiny import hash_of, tiny_values

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
            "optim__polar_steps": 2,
            "train__batch_stages": (1, 2),
            "lr__multipliers": (1.0, 1.5),
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
    small = {
        "train__epochs": 3,
        "train__accum_steps": 1,
        "model__memory_piece": 4,
        "sample__bytes": 0,
        "curriculum__ladder": (4, "full"),
    }
    values = tiny_values(**small | overrides)
    result = run(values, tmp_path / "run")
    train = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert result["step"] == 12 and result["bpb"] < 8.5
    assert train[-1]["loss"] < train[0]["loss"]
    assert result["cutoff"] == 17, "12 steps: one raise by the plateau rule, or the full band from the start"
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
    straight = hash_of(workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    run(values, workdir)
    assert "resuming from step" in capsys.readouterr().out
    return hash_of(workdir) == straight


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
