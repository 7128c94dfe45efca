"""Learning rates of RAFT cycles: the exact values of the source card and its siblings, YAML both ways, refusals."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fftlm_jax.raft.cycle_lr import CycleLR, adapted, lr_area
from fftlm_jax.raft.lr_yaml import float_text, from_yaml, to_yaml

WSD = CycleLR("wsd", 5e-5, warmup=2, stable=2, fall=4, final=0.2)


@pytest.mark.parametrize(
    "case,schedule,expected",
    (
        ("constant", CycleLR("constant", 5e-5), (5, 5, 5, 5, 5)),
        ("0.95", CycleLR("exponential", 5e-5, 0.95), (5, 4.75, 4.5125, 4.286875, 4.07253125)),
        ("0.85", CycleLR("exponential", 5e-5, 0.85), (5, 4.25, 3.6125, 3.070625, 2.61003125, 2.2185265625)),
        ("0.70", CycleLR("exponential", 5e-5, 0.70), (5, 3.5, 2.45, 1.715, 1.2005)),
        ("decay 1 is constant", CycleLR("exponential", 5e-5, 1.0), (5, 5, 5)),
        ("step", CycleLR("step", 5e-5, 0.5, every=2), (5, 5, 2.5, 2.5, 1.25, 1.25)),
        ("wsd", WSD, (3.75, 5, 5, 5, 4, 3, 2, 1, 1)),
        ("a warm-up of one cycle is none", CycleLR("wsd", 5e-5, warmup=1, stable=1), (5, 5, 5)),
        ("no warm-up", CycleLR("wsd", 5e-5, fall=2, final=0.5), (3.75, 2.5, 2.5)),
        ("the last rate written down is held", CycleLR("manual", rates=(5e-5, 4e-5)), (5, 4, 4)),
        ("adaptive begins at its base", CycleLR("adaptive", 5e-5), (5, 5)),
    ),
)
def test_exact_values(case, schedule, expected):
    assert [schedule(n) for n in range(1, len(expected) + 1)] == pytest.approx([e * 1e-5 for e in expected], rel=1e-12)


@pytest.mark.parametrize("decay,first", ((0.85, 26), (0.70, 12)))
def test_where_a_floor_of_1e_6_first_binds(decay, first):
    schedule = CycleLR("exponential", 5e-5, decay, floor=1e-6)
    assert schedule(first - 1) > 1e-6 == schedule(first) == schedule(first + 50)


def test_areas_in_units_of_the_first_rate():
    schedules = [CycleLR("exponential", 5e-5, decay) for decay in (1.0, 0.95, 0.85, 0.70)]
    assert [lr_area(s, 5) / 5e-5 for s in schedules] == pytest.approx([5, 4.524, 3.709, 2.773], abs=5e-4)
    assert [lr_area(s, 8) / 5e-5 for s in schedules] == pytest.approx([8, 6.732, 4.850, 3.141], abs=5e-4)
    assert lr_area(schedules[0], 2, steps=(3, 7)) == pytest.approx(10 * 5e-5)


def test_the_cards_decays_against_its_own_range_for_cycle_5():
    inside = [d for d in (1.0, 0.95, 0.85, 0.70) if 2e-5 <= CycleLR("exponential", 5e-5, d)(5) <= 3e-5]
    assert inside == [0.85]


def test_adaptive_factors_compound_above_a_floor():
    assert adapted(adapted(5e-5, 0.7, 0.0), 0.7, 0.0) == pytest.approx(5e-5 * 0.49)
    assert adapted(2e-6, 0.1, 1e-6) == 1e-6
    with pytest.raises(ValueError, match="factor"):
        adapted(1e-5, 0.0, 0.0)


@pytest.mark.parametrize(
    "case,text,expected",
    (
        ("constant, a string by YAML 1.1", "training:\n  learning_rate: 5e-5", CycleLR("constant", 5e-5)),
        (
            "exponential",
            "training:\n  base_learning_rate: 5e-5\n  lr_decay_factor: 0.85",
            CycleLR("exponential", 5e-5, 0.85),
        ),
        (
            "the other names",
            "learning_rate: 5.0e-5\nlr_decay_per_cycle: 0.7\nmin_lr: '1e-6'",
            CycleLR("exponential", 5e-5, 0.7, floor=1e-6),
        ),
        ("decay 1.0 survives", "learning_rate: 2e-4\nlr_decay_factor: 1.0", CycleLR("exponential", 2e-4, 1.0)),
        (
            "manual",
            "training:\n  learning_rate_schedule:\n    cycle_2: 4.0e-5\n    cycle_1: 5e-5",
            CycleLR("manual", rates=(5e-5, 4e-5)),
        ),
    ),
)
def test_both_families_of_keys_are_read(case, text, expected):
    assert from_yaml(text) == expected


@pytest.mark.parametrize(
    "text,message",
    (
        ("learning_rat: 5e-5", "did you mean 'learning_rate'"),
        ("learning_rate: fast", "'fast' is no number"),
        ("learning_rate: .nan", "finite"),
        ("learning_rate: yes", "must be a finite number"),
        ("learning_rate: 5e-5\nbase_learning_rate: 5e-5", "says the same"),
        ("learning_rate: 5e-5\nlearning_rate_schedule: {cycle_1: 5e-5}", "remove the other schedule"),
        ("lr_decay_factor: 0.5", "no schedule"),
        ("learning_rate_schedule: {cycle_1: 1e-5, cycle_3: 1e-5}", "cycle_2: is missing"),
        ("learning_rate_schedule: {first: 1e-5}", "cycles are named"),
        ("learning_rate: -1", "above 0"),
        ("learning_rate: 1e-5\nlr_decay_factor: 1.2", r"must lie in \(0, 1\]"),
        ("[", "not YAML"),
        ("5e-5", "keys and values"),
    ),
)
def test_faults_are_one_sentence(text, message):
    with pytest.raises(ValueError, match=message) as error:
        from_yaml(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values,message",
    (
        ({"kind": "cosine", "base": 1e-5}, "none of"),
        ({"kind": "constant"}, "above 0"),
        ({"kind": "step", "base": 1e-5, "every": 0}, "at least 1"),
        ({"kind": "wsd", "base": 1e-5, "warmup": 1.5}, "whole number"),
        ({"kind": "wsd", "base": 1e-5, "final": 0.0}, "final"),
        ({"kind": "manual"}, "at least one"),
        ({"kind": "manual", "rates": (1e-5, 0.0)}, "rates"),
        ({"kind": "constant", "base": 1e-5, "floor": math.inf}, "floor"),
    ),
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CycleLR(**values)


def test_cycles_are_counted_from_1():
    with pytest.raises(ValueError, match="counted from 1"):
        CycleLR("constant", 5e-5)(0)


@given(st.floats(1e-300, 1e300))
def test_numbers_survive_yaml_as_numbers(value):
    assert yaml.safe_load(float_text(value)) == value == float(float_text(value))


@given(st.floats(1e-8, 1.0), st.floats(0.01, 1.0), st.sampled_from(("constant", "exponential", "step", "wsd")))
def test_written_schedules_are_read_back_to_the_last_bit(base, decay, kind):
    shape = {"wsd": {"warmup": 2, "stable": 1, "fall": 3, "final": decay}, "constant": {}}.get(kind, {"decay": decay})
    schedule = CycleLR(kind, base, **shape)
    text = to_yaml(schedule, cycles=7)
    assert [from_yaml(text)(n) for n in range(1, 8)] == [schedule(n) for n in range(1, 8)]
    rates = yaml.safe_load(text)["training"]
    assert all(isinstance(v, float) for v in rates.get("learning_rate_schedule", rates).values())
