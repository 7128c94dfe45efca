"""The calculator of RAFT learning rates: the card's table, every option beside every other, refusals."""

import errno
import io
import json
import os
import sys

import pytest
import yaml

from fftlm_jax.raft.schedule_calculator import decay_table, main, recommendations, scientific


@pytest.mark.parametrize(
    "value,digits,expected",
    (
        (5e-5 * 0.7**2, 1, "2.5e-5"),
        (5e-5 * 0.7**3, 2, "1.72e-5"),
        (9.99e-5, 1, "1.0e-4"),
        (1.0, 2, "1.00e0"),
        (0.00015, 0, "2e-4"),
    ),
)
def test_halves_are_rounded_up_in_decimal(value, digits, expected):
    assert scientific(value, digits) == expected


def test_the_cards_table():
    rows = [line.split()[:4] for line in decay_table(5e-5).splitlines()[1:]]
    assert rows == [
        ["1.00", "5.0e-5", "5.0e-5", "5.0e-5"],
        ["0.95", "5.0e-5", "4.5e-5", "4.1e-5"],
        ["0.85", "5.0e-5", "3.6e-5", "2.6e-5"],
        ["0.70", "5.0e-5", "2.5e-5", "1.2e-5"],
    ]


def test_everything_at_once(tmp_path, capsys):
    options = ["--compare", "--visualize", "--yaml", "--json", "--recommendations", "--base-lr=8e-5", "--decay=0.9"]
    assert main([*options, "--cycles=3", f"--output={tmp_path / 'plan.png'}"]) == 0
    for decay in ("0.85", "0.70"):  # What is behind the dot is part of the name.
        assert main([f"--decay={decay}", "--yaml", f"--output={tmp_path / f'lr{decay}'}"]) == 0
        assert (tmp_path / f"lr{decay}.yaml").is_file()
    printed = capsys.readouterr().out
    assert printed.startswith("HYPOTHESES") and "constant    8.00e-5  8.00e-5  8.00e-5" in printed
    assert "decay 0.90  8.00e-5  7.20e-5  6.48e-5" in printed
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    written = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert written == {"training": {"base_learning_rate": 8e-5, "lr_decay_factor": 0.9}}
    rates = json.loads((tmp_path / "plan.json").read_text())
    assert rates["constant"] == [8e-5] * 3 and rates["decay 0.90"][2] == 8e-5 * 0.9**2
    assert set(rates) == {"constant", "decay 0.95", "decay 0.85", "decay 0.70", "decay 0.90"}


def test_without_options_it_prints_the_schedule(capsys):
    assert main(["--schedule=manual", "--rates=5e-5,4e-5", "--cycles=3"]) == 0
    assert "manual    5.00e-5  4.00e-5  4.00e-5" in capsys.readouterr().out


def test_recommendations_follow_the_base_and_say_what_they_are():
    text = recommendations(1e-4)
    assert text.startswith("HYPOTHESES") and "4.0e-4" in text and "RAFT, cycle 5  4.0e-5 to 6.0e-5" in text


@pytest.mark.parametrize(
    "options,message",
    (
        (["--cycles=0"], "--cycles: must be at least 1"),
        (["--cycles=1000000000"], "at most 65536"),
        (
            ["--base-lr=1e308", "--compare", "--recommendations"],
            "--base-lr: a learning rate lies above 0 and is at most",
        ),
        (["--base-lr=nan", "--schedule=manual", "--rates=1"], "--base-lr: a learning rate lies above 0"),
        (["--schedule=manual", "--rates=1e308,1e308"], "--rates: a learning rate lies above 0"),
        (["--min-lr=1e308"], "--min-lr: a learning rate lies above 0"),
        (["--base-lr=-1"], "above 0"),
        (["--decay=0"], "must lie in"),
        (["--decay=1.1"], "must lie in"),
        (["--schedule=manual"], "at least one learning rate"),
        (["--schedule=manual", "--rates=a"], "could not convert"),
        (["--yaml", "--output=/nowhere/at/all"], "cannot be written"),
    ),
)
def test_refusals(options, message, capsys):
    with pytest.raises(SystemExit):
        main(options)
    told = capsys.readouterr()
    assert message in told.err and told.out == ""


@pytest.mark.parametrize("base", (1e18, 5e-324))
def test_rates_at_the_ends_of_what_is_taken_are_printed(capsys, base):
    assert main([f"--base-lr={base}", "--compare", "--recommendations", "--cycles=4"]) == 0
    printed = capsys.readouterr().out
    assert scientific(base, 2) in printed and "inf" not in printed.lower().split() and "nan" not in printed


def test_a_picture_that_cannot_be_written_is_named_although_no_name_was_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr_schedules.png").mkdir()
    with pytest.raises(SystemExit):
        main(["--visualize"])
    assert "--output: lr_schedules.png cannot be written (" in capsys.readouterr().err


def test_a_full_standard_output_is_not_taken_for_a_file(monkeypatch, capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["--yaml"]) == 1
    assert "standard output cannot be written" in capsys.readouterr().err
