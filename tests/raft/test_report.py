"""The report of a run of cycles as Markdown, and its picture."""

import re

import pytest
from matplotlib import image
from matplotlib import pyplot as plt

from fftlm_jax.raft.advise import advise_all
from fftlm_jax.raft.cycles_figure import draw_cycles
from fftlm_jax.raft.report import interval, markdown
from tests.raft.histories import KNOBS, cycle, history

RATES = (0.2, 0.3, 0.4, 0.25, 0.42)


def table_after(text, heading):
    """Rows of the table below a heading, by column title."""
    lines = [line for line in text.split(f"## {heading}")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def report(results):
    return markdown(results, advise_all(results, KNOBS), "a run")


def test_every_cycle_has_its_rows():
    text = report(history(RATES))
    assert text.startswith("# a run\n")
    assert [row["cycle"] for row in table_after(text, "Held-out")] == ["0", "1", "2", "3", "4"]
    assert [row["cycle"] for row in table_after(text, "Samples")] == ["1", "2", "3", "4"]
    assert "Best: cycle 4 with 42.0 %" in text
    assert "after cycle 3, R1 (hypothesis): " in text and "Change: `raft.lr_base x 0.7" in text


def test_round_numbers():
    changes = {"se": 0.01, "sampled_rate": 0.25, "pass_at": {"1": 0.25, "2": 0.3, "16": 0.5}, "gold_loss": 1.25}
    text = report([cycle(0, 0.2), cycle(1, 0.5, **changes, general_bpb=2.5, lr=1e-3, clip_fraction=0.75)])
    scores, training = table_after(text, "Held-out")[1], table_after(text, "Samples")[0]
    assert scores == {
        "cycle": "1",
        "parent": "0",
        "held-out rate (95 %)": "50.0 % (48.0 to 52.0)",
        "greedy": "50.0 %",
        "sampled": "25.0 %",
        "pass@16": "50.0 %",
        "pass@4": "",  # Cycle 0 had fewer completions.
        "gold loss": "1.250",
        "general bpb": "2.500",
    }
    assert training == {
        "cycle": "1",
        "train-prompt rate": "40.0 %",
        "kept": "1,800",
        "coverage": "60.0 %",
        "unique/valid": "0.90",
        "LR": "1.00e-03",
        "steps": "12",
        "LR area": "2.40e-02",
        "loss": "0.5 -> 0.32",
        "clipped": "75.0 %",
    }


def test_cycle_0_alone(tmp_path):
    text = report([cycle(0, 0.2)])
    assert "No cycle is finished yet." in text and "No rule has anything to say." in text
    assert "general bpb" not in text  # Nothing to show in that column.
    draw_cycles([cycle(0, 0.2)], tmp_path / "cycles.png", "start")
    assert (tmp_path / "cycles.png").stat().st_size > 0


def test_a_cycle_that_kept_nothing(tmp_path):
    results = [cycle(0, 0.2), cycle(1, 0.2, kept=0, coverage=0.0, no_training=True)]
    row = table_after(report(results), "Samples")[0]
    assert row["kept"] == "0" and row["steps"] == "0" and "LR" not in row
    draw_cycles(results, tmp_path / "cycles.png", "nothing kept")
    assert (tmp_path / "cycles.png").stat().st_size > 0


@pytest.mark.parametrize(
    "rate,se,expected", ((0.01, 0.01, "1.0 % (0.0 to 3.0)"), (1.0, 0.01, "100.0 % (98.0 to 100.0)"))
)
def test_intervals_stay_within_bounds(rate, se, expected):
    assert interval(cycle(1, rate, se=se)) == expected


def test_it_says_what_the_numbers_do_not_show():
    caveats = report(history(RATES)).split("do not show")[1]
    assert "one seed" in caveats and len(re.findall(r"\.(?:\s|$)", caveats)) == 2


def test_the_picture_grows_with_what_there_is(tmp_path):
    sizes = []
    for count in (1, 5):
        draw_cycles(history(RATES)[:count], tmp_path / "cycles.png", "a run")
        height, width, _ = image.imread(tmp_path / "cycles.png").shape
        sizes.append(height * width)
    assert sizes[1] > 3 * sizes[0]
    assert [file.name for file in tmp_path.iterdir()] == ["cycles.png"] and not plt.get_fignums()
