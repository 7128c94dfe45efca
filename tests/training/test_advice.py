"""Advice before training: stages against raises, rungs out of reach, thresholds within the noise."""

import pytest

from configs import aligned, quickstart
from fftlm_jax.config.reading import read_config
from fftlm_jax.curriculum import earliest_raises
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.doctor.evidence import NOTE, WARNING
from fftlm_jax.doctor.rules_config import advice
from fftlm_jax.plan.dry_run import dry_run
from tests.tiny import tiny, tiny_values


def documents(**overrides):
    """`aligned` with dotted overrides (`__` for the dot), and a window that rises above the noise."""
    values = aligned.get_config()
    values.curriculum.window = 800
    for dotted, value in overrides.items():
        section, _, name = dotted.rpartition("__")
        values[section][name] = value
    return read_config(values)


STALLING = ((5, 1.0, 0.1), ("rest", 1.0, 0.05))

STAGES = (
    ("aligned", {}, None),
    ("aligned, no restart", {"lr__restart": "none"}, None),
    ("stalling, tooth", {"lr__stages": STALLING}, NOTE),
    ("stalling, pulse", {"lr__stages": STALLING, "lr__restart": "pulse"}, WARNING),
    ("stalling, none", {"lr__stages": STALLING, "lr__restart": "none"}, WARNING),
    ("stalling, later raises", {"lr__stages": STALLING, "lr__restart": "none", "curriculum__min_epoch": 5}, None),
    ("one long stage", {"lr__stages": (("rest", 1.0, 0.05),), "lr__restart": "none"}, None),
    ("no curriculum", {"lr__stages": STALLING, "lr__restart": "none", "curriculum__rule": "none"}, None),
)


@pytest.mark.parametrize("case,overrides,severity", STAGES, ids=[case for case, *_ in STAGES])
def test_the_documents_stages(case, overrides, severity):
    """Five epochs with raises from epoch 2 on stall unless a raise restarts the tooth."""
    found = advice(documents(**overrides))
    assert [f.severity for f in found] == ([severity] if severity else [])
    if severity:
        # (0.1 + 0.9 * (1 + cos(0.4 pi)) / 2), and the same at 0.8 pi.
        assert found[0].evidence == pytest.approx({"share_of_peak": 0.689, "share_in_its_last_epoch": 0.186}, abs=1e-3)
        assert "epoch 2" in found[0].text and f"lr.restart={overrides.get('lr__restart', 'tooth')}" in found[0].text


def test_a_schedule_names_every_raise_that_its_stages_miss():
    found = advice(documents(curriculum__rule="schedule", lr__stages=STALLING, lr__restart="none"))
    assert [(f.rule, f.step) for f in found] == [("misaligned_stages", 2000)], "those at epochs 5 and 10 are fine"


def test_the_earliest_raises_are_those_of_a_rule_that_always_finds_a_plateau():
    """A tiny run really raises there (tests/training/test_run.py)."""
    controller = build_controller(tiny())
    raises = earliest_raises(controller.rule, controller.cutoff, 20)
    assert [(r.step, r.old, r.new) for r in raises] == [(6, 4, 8), (12, 8, 17)]
    assert controller.cutoff == 4, "the controller itself is left alone"
    assert earliest_raises(controller.rule, controller.cutoff, 12) == raises[:1], "step 12 is not done any more"


@pytest.mark.parametrize("epochs,min_epoch,change", ((2, 2, "curriculum.min_epoch"), (3, 1, "train.epochs")))
def test_rungs_out_of_reach(epochs, min_epoch, change):
    found = advice(tiny(train__epochs=epochs, curriculum__min_epoch=min_epoch))
    assert [f.rule for f in found if f.severity == WARNING] == ["unreachable_rung"]
    assert found[0].change.startswith(change)


def test_a_threshold_within_the_noise():
    """The documents' own, on the default corpus: 0.005 against an error of 0.8 %. On an even text it is above it."""
    (finding,) = advice(read_config(aligned.get_config()))
    assert finding.rule == "threshold_in_noise" and finding.evidence["error"] == pytest.approx(0.0083, abs=1e-4)
    assert finding.change.startswith("curriculum.window=556"), "longer, not another threshold"
    assert advice(documents()) == [], "as long as that, the noise is below it"
    assert advice(documents(curriculum__window=50, data__source="files", data__path=__file__)) == []
    assert advice(documents(curriculum__window=50, train__accum_steps=32)) == [], "more windows a step scatter less"
    confident = advice(documents(curriculum__window=50, curriculum__test="confidence"))
    assert "hardly any plateau is found" in confident[0].text, "that test is not fooled, but blind"
    tiny_threshold = advice(documents(curriculum__threshold=-0.001))
    assert tiny_threshold[0].change.startswith("curriculum.threshold=0.00"), "no window helps one that is not positive"


def test_the_quickstart_needs_no_advice():
    assert advice(read_config(quickstart.get_config())) == []


def test_a_dry_run_prints_it(capsys):
    dry_run(tiny_values(train__epochs=2, curriculum__min_epoch=2))
    assert "⚠ unreachable_rung: the run ends at cutoff 4 of 17" in capsys.readouterr().out
