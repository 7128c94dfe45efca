"""Pictures end no run: names that Matplotlib would take for mathematics, fonts and programs that it lacks."""

import os

import matplotlib
import pytest
from matplotlib import pyplot as plt

from fftlm_jax.recording.compare_runs import draw, shown_label
from fftlm_jax.recording.compare_runs import main as compare
from fftlm_jax.recording.console import Console
from fftlm_jax.recording.curves import draw_curves, replace_figure, set_title
from fftlm_jax.recording.history import History
from fftlm_jax.runtime.process import run_command

NAMES = ("run_$JOB_$SEED", "$x", "größe", "new\udcff", "_under", "a\nb", "tab\there")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_of_a_run_can_stand_over_a_picture(tmp_path, name):
    figure, _ = plt.subplots()
    set_title(figure, f"{name}: step 1/2")
    replace_figure(figure, tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.filterwarnings("error")
def test_a_name_that_no_font_has_is_drawn_without_a_warning(tmp_path):
    figure, _ = plt.subplots()
    set_title(figure, "漢字の実験")
    replace_figure(figure, tmp_path / "a.png")
    draw({"漢字": {"loss": [(1, 2.0), (2, 1.0)]}}, tmp_path / "b.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_run_stands_in_the_legend(tmp_path, monkeypatch, name):
    legends = []
    monkeypatch.setattr("fftlm_jax.recording.compare_runs.replace_figure", lambda figure, *rest: legends.append(figure))
    draw({name: {"loss": [(1, 2.0), (2, 1.0)]}, "other": {"loss": [(1, 2.0)]}}, tmp_path / "a.png")
    (legend,) = legends[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [shown_label(name), "other"]
    replace_figure(legends[0], tmp_path / "a.png")


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path, capsys):
    """Here for want of LaTeX, which a user's settings ask for."""
    console = Console(tmp_path / "run.log")
    with matplotlib.rc_context({"text.usetex": True}), console.tolerance.of("curves.png"):
        figure, _ = plt.subplots()
        set_title(figure, r"\undefined{")
        replace_figure(figure, tmp_path / "curves.png")
    assert "WARNING: curves.png cannot be written (it cannot be drawn: " in capsys.readouterr().out
    assert not (tmp_path / "curves.png").exists() and plt.get_fignums() == []


@pytest.mark.parametrize("values", ({}, {"at": 1}, {"rule": "x"}, {"at": "1", "rule": "x"}, {"at": 1, "rule": [2]}))
def test_a_warning_on_record_that_says_neither_what_nor_where_is_not_marked(tmp_path, values):
    records = [{"kind": "train", "step": step, "loss": 2.0} for step in (1, 2)]
    history = History([*records, {"kind": "event", "step": 2, "event": "warning", **values}])
    draw_curves(history, tmp_path / "a.png", "a run")
    assert history.warnings == [] and (tmp_path / "a.png").is_file()


def test_a_backend_that_is_not_there_matters_to_no_command(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "absent")
    assert run_command(lambda: os.environ["MPLBACKEND"] != "Agg") == 0


@pytest.mark.parametrize("out", ("compare", "pic.txt", ".", "folder.png"))
def test_a_picture_is_asked_for_by_the_name_of_one(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert compare(["none", f"--out={out}"]) == 1
    assert "is no name of a picture; let it end in .png" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]
