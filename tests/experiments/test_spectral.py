"""The spectral sweep's trials, the pictures' readers, and signal-to-noise ratios that are known beforehand."""

import ast
import re

import numpy as np
import pytest

from configs import spectral_sweep as config
from experiments import plot_spectral_sweep, radial_noise, spectral_sweep
from experiments.outcomes import Outcome
from experiments.trials import Trial
from fftlm_jax.config.reading import read_config
from fftlm_jax.recording import compare_runs
from tests.tiny import main_here

LOG = """
some source code: step:1/2 in it
step:0/1600 val_loss:10.8258 train_time:0ms step_avg:0.03ms
step:50/1600 val_loss:5.1234 lr_mul:1.0000 beta1:0.85 beta2:0.95 batch_size:131072 train_time:3097ms \
step_avg:61.94ms spec_attn:[-0.5000, 0.1000] spec_mlp:[-0.3000, 0.0000]
step:60/1600 train_time:3000ms
"""


def test_names_follow_the_grammar_of_the_sources_logs():
    trials = spectral_sweep.trials_of("source", 3, 8, "20260206-233406")
    assert len(trials) == 3 * 3 + 2 * 8 and len({t.name for t in trials}) == len(trials)
    grammar = re.compile(r"lrmul-([\d.]+-){4}cd[\d.]+-spectral_lr_[\w.]+-seed\d+-\d{8}-\d{6}$")
    assert all(grammar.match(t.name) for t in spectral_sweep.trials_of("all", 1, 1, "20260206-233406"))
    assert [t.seed for t in trials[:15]] == [0] * 5 + [1] * 5 + [2] * 5


def test_one_stamp_for_all_jobs_of_an_array(tmp_path, capsys):
    with pytest.raises(SystemExit):
        spectral_sweep.main([f"--out={tmp_path / 'sweep'}", "--report"])
    assert not (tmp_path / "sweep").exists() and "holds no spectral sweep" in capsys.readouterr().err
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "stamp.txt").write_text("20260206-233406\n")
    assert spectral_sweep.main([f"--out={tmp_path / 'sweep'}", "--list"]) == 0
    assert "spectral_lr_0.01-seed0-20260206-233406" in capsys.readouterr().out
    first = spectral_sweep.stamp_of(tmp_path / "new")
    assert spectral_sweep.stamp_of(tmp_path / "new") == first
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["stamp.txt"]


def test_every_arm_is_a_valid_config():
    for tag, overrides in (spectral_sweep.arms_of("all") | spectral_sweep.arms_of("transfer")).items():
        values = config.get_config()
        for override in overrides:
            key, _, text = override.partition("=")
            flat = {key: _typed(text)}
            values.update_from_flattened_dict(flat)
        assert read_config(values).optim.name in ("muon", "adamw"), tag


def _typed(text):
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def test_the_arm_by_group_passes_the_command_line(capsys):
    override = spectral_sweep.GRIDS["future"]["per_layer"][0]
    assert main_here("--config=configs/spectral_sweep.py", f"--config.{override}", "--config.model.n_layers=0") == 1
    errors = capsys.readouterr().err
    assert "config.model.n_layers: must be at least 1" in errors and "spectral_lr" not in errors


def test_logs_of_the_source_are_read():
    series = compare_runs.series_of_log(LOG)
    assert series["val_loss"] == [(0, 10.8258), (50, 5.1234)]
    assert series["lr"] == [(50, 1.0)] and series["rho"] == [(50, pytest.approx(0.225))]


def test_runs_are_read_and_gaps_left_out():
    records = [
        {"kind": "train", "step": 1, "loss": 2.0, "lr": 0.1, "cutoff": 4, "grad_norm": None, "nonfinite": True},
        {"kind": "eval", "step": 1, "bpb": 3.0},
        {"kind": "radial", "step": 1, "rho": {"a": [-1.0, 3.0], "b": [None]}},
    ]
    series, left_out = compare_runs.finite_part(compare_runs.series_of_records(records))
    assert left_out == {"grad_norm": 1}
    assert series["loss"] == [(1, 2.0)] and series["grad_norm"] == []
    assert series["bpb"] == [(1, 3.0)] and series["rho"] == [(1, 2.0)]


def test_pictures_are_drawn_and_wrong_paths_said(tmp_path, capsys):
    (tmp_path / "log.txt").write_text(LOG)
    assert compare_runs.main([str(tmp_path / "log.txt"), f"--out={tmp_path / 'a.png'}"]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert compare_runs.main([str(tmp_path / "none")]) == 1
    assert "neither a run directory nor a log" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        plot_spectral_sweep.main([str(tmp_path)])


def test_the_sweeps_picture_draws_plain_alphas_only(tmp_path):
    lines = ['{"kind": "eval", "step": 5, "loss": 1.5}']
    lines.append('{"kind": "radial", "step": 5, "groups": {"mixer": {"abs_rho": 0.1}, "mlp": {"abs_rho": 0.2}}}')
    outcomes = []
    for arm in ("0", "0.1", "0_brake"):
        (tmp_path / arm).mkdir()
        (tmp_path / arm / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        outcomes.append(Outcome(Trial(arm, (), 0, arm), "finished", {}))
    plot_spectral_sweep.draw(outcomes, tmp_path, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_signal_to_noise_of_gradients_made_for_it():
    """Along W: mean 0.3, deviation 1; noise elsewhere does not count. The whole: |mean| 0.3 against sqrt(20)."""
    rng = np.random.default_rng(0)
    weight = np.zeros((1, 4, 5))
    weight[0, 1, 2] = -7.0
    gradient = rng.normal(size=(4000, 1, 4, 5))
    gradient[:, 0, 1, 2] += 0.3
    along, rest = radial_noise.signal_to_noise(gradient, weight)
    assert along[0] == pytest.approx(0.3, abs=0.05)
    assert rest[0] == pytest.approx(0.3 / 20**0.5, abs=0.02)
