"""The advisor on made-up histories: when each rule speaks and when not, and that it asks for one change at most."""

import dataclasses
import json
import math

import numpy as np
import pytest

from fftlm_jax.raft.advise import advise, advise_all, lr_factor_of
from fftlm_jax.raft.cycle_result import ends, largest_spike, smallest_swing
from tests.raft.histories import FALLING, KNOBS, LEVEL, cycle, history

RISING = (0.144, 0.196, 0.268, 0.328)
FLAT = (0.2, 0.3, 0.305, 0.31)
SPIKED = (*FALLING[:8], 1.2, *FALLING[9:])
SWINGING = (1.0, 0.8, 0.5, 0.9, 0.4, 0.9, 0.4, 0.9, 0.4, 0.9)
GOLD = ({"gold_loss": 1.0}, {"gold_loss": 1.01}, {"gold_loss": 1.04}, {"gold_loss": 1.07})  # +1, +3, +2.9 %
NARROW = {"unique_valid": 0.4}
TRIES = {"pass_at": {"1": 0.3, "4": 0.5}}
DECAYED = tuple({"lr": 2e-3 * 0.85 ** max(n - 1, 0)} for n in range(8))
EXPONENTIAL = dataclasses.replace(KNOBS, lr_kind="exponential")
ADAPTIVE = dataclasses.replace(KNOBS, lr_kind="adaptive")


def fired(results, knobs=KNOBS):
    return {advice.rule for advice in advise(results, knobs)}


def of(rule, results, knobs=KNOBS):
    return next(advice for advice in advise(results, knobs) if advice.rule == rule)


@pytest.mark.parametrize(
    "case,results,expected",
    (
        ("a rising history", history(RISING), set()),
        ("R0: 4 steps", history(RISING, last={"losses": FALLING[:4]}), {"R0"}),
        ("R0: not with 5", history(RISING, last={"losses": FALLING[:5]}), set()),
        ("R0: a peak of 89 %", history(RISING, last={"lr_peak": 0.89 * 2e-3}), {"R0"}),
        ("R0: not with 91 %", history(RISING, last={"lr_peak": 0.91 * 2e-3}), set()),
        ("R0: tiny updates", history(RISING, last={"update_ratio": 9e-6}), {"R0"}),
        ("R0: not with small ones", history(RISING, last={"update_ratio": 2e-5}), set()),
        ("R0: nothing to train on", history(RISING, last={"no_training": True}), {"R0"}),
        ("R1: 5 points down", history((0.2, 0.35, 0.30)), {"R1"}),
        ("R1: not 4 points down, within 2 standard errors", history((0.2, 0.35, 0.31)), set()),
        ("R1: below the start", history((0.35, 0.30)), {"R1"}),
        ("R1: wide intervals", history((0.2, 0.35, 0.30), each=[{"se": 0.03}] * 3), set()),
        ("R2: two cycles", history((0.2, 0.3, 0.3, 0.33), each=GOLD), {"R2"}),
        ("R2: not after the first of them", history((0.2, 0.3, 0.3), each=GOLD), set()),
        ("R2: with a falling training loss", history((0.2, 0.3, 0.3, 0.36), each=GOLD), {"R2"}),
        (
            "R2: not with a rising one",
            history((0.2, 0.3, 0.3, 0.36), each=GOLD, last={"losses": FALLING[::-1]}),
            set(),
        ),
        ("R3: a spike", history((0.3, 0.33), last={"losses": SPIKED}), {"R3"}),
        ("R3: swings", history((0.3, 0.33), last={"losses": SWINGING}), {"R3"}),
        ("R4: a note", history(RISING, last={"clip_fraction": 0.5}), {"R4"}),
        ("R4: not below half", history(RISING, last={"clip_fraction": 0.49}), set()),
        ("R5: fewer answers", history(RISING, multi_answer=True, last=NARROW), {"R5"}),
        ("R5: not half of them", history(RISING, multi_answer=True, last={"unique_valid": 0.46}), set()),
        ("R5: coverage from 60 to 47 %", history(RISING, multi_answer=True, last={"coverage": 0.47}), {"R5"}),
        ("R5: not to 49 %", history(RISING, multi_answer=True, last={"coverage": 0.49}), set()),
        ("R5: not where one answer is right", history(RISING, last=NARROW), set()),
        ("R6: flat rate and loss", history(FLAT, last={"losses": LEVEL}), {"R6"}),
        ("R6: not with a falling loss", history(FLAT), set()),
        ("R6: not with a rising rate", history(RISING, last={"losses": LEVEL}), set()),
        ("R6: not after one flat cycle", history(FLAT[:3], last={"losses": LEVEL}), set()),
        (
            "R6: small gradients stand for a flat loss",
            history(FLAT, last={"grad_norm": {"0.1": 0.1, "0.5": 0.16, "0.9": 0.2}}),
            {"R6"},
        ),
        (
            "R6: the same ones with a smaller clip",
            history(FLAT, last={"grad_norm": {"0.1": 0.1, "0.5": 0.16, "0.9": 0.2}, "clip": 0.3}),
            set(),
        ),
        ("R7: more tries", history(FLAT, last=TRIES), {"R7"}),
        ("R7: not with a rising rate", history(RISING, last=TRIES), set()),
        ("R7: not where one completion a prompt is known", history(FLAT, last={"pass_at": {"1": 0.3}}), set()),
        ("R8: done", history((0.5, 0.97, 0.975, 0.98)), {"R8"}),
        ("R8: not at 94 %", history((0.5, 0.93, 0.935, 0.94)), set()),
        ("R9: rough and flat", history(FLAT, last={"losses": (*LEVEL[:6], 2.0, *LEVEL[:5])}), {"R3", "R6", "R9"}),
    ),
)  # fmt: skip
def test_when_rules_speak(case, results, expected):
    assert fired(results) == expected


@pytest.mark.parametrize(
    "case,results,knobs,rule,change,factor,first",
    (
        ("nothing kept", history(RISING, last={"no_training": True}), KNOBS, "R0", "raft.samples x 2", 1.0, 1),
        ("3 steps", history(RISING, last={"losses": FALLING[:3]}), KNOBS, "R0", "raft.epochs 3 -> 6", 1.0, 1),
        ("1 step", history(RISING, last={"losses": FALLING[:1]}), KNOBS, "R0", "raft.epochs 3 -> 15", 1.0, 1),
        (
            "warm-up",
            history(RISING, last={"lr_peak": 1e-3}),
            dataclasses.replace(KNOBS, warmup=10),
            "R0",
            "raft.warmup 10 -> 0",
            1.0,
            1,
        ),
        (
            "constant, lower",
            history((0.2, 0.35, 0.3)),
            KNOBS,
            "R1",
            "raft.lr_base x 0.7 (cycle 1 at 0.0014, not 0.002)",
            0.7,
            1,
        ),
        (
            "decay, lower",
            history((0.2, 0.35, 0.3), each=DECAYED[:3]),
            EXPONENTIAL,
            "R1",
            "raft.lr_decay 0.85 -> 0.70",
            0.7,
            2,
        ),
        (
            "decay, but only cycle 1 was trained",
            history((0.35, 0.3)),
            EXPONENTIAL,
            "R1",
            "raft.lr_base x 0.7 (cycle 1 at 0.0014, not 0.002)",
            0.7,
            1,
        ),
        (
            "adaptive, lower",
            history((0.2, 0.35, 0.3)),
            ADAPTIVE,
            "R1",
            "raft.lr=adaptive: cycle 3 at 0.7 x the last rate",
            0.7,
            3,
        ),
        (
            "manual",
            history((0.2, 0.35, 0.3)),
            dataclasses.replace(KNOBS, lr_kind="manual"),
            "R1",
            "raft.lr_rates x 0.7",
            0.7,
            1,
        ),
        (
            "temperature",
            history(RISING, multi_answer=True, last=NARROW),
            KNOBS,
            "R5",
            "raft.temperature 1 -> 1.25",
            1.0,
            1,
        ),
        (
            "constant, higher",
            history(FLAT, last={"losses": LEVEL}),
            KNOBS,
            "R6",
            "raft.lr_base x 1.4 (cycle 1 at 0.0028, not 0.002)",
            1.4,
            1,
        ),
        (
            "decay too early to be at fault",
            history((0.3, 0.305, 0.31), each=DECAYED[:3], last={"losses": LEVEL}),
            EXPONENTIAL,
            "R6",
            "raft.lr_base x 1.4 (cycle 1 at 0.0028, not 0.002)",
            1.4,
            1,
        ),
        (
            "decay that took more than is given back",
            history((0.1, 0.2, 0.3, 0.302, 0.304), each=DECAYED[:5], last={"losses": LEVEL}),
            EXPONENTIAL,
            "R6",
            "raft.lr_decay 0.85 -> 0.95",
            1.4,
            2,
        ),
        ("more tries", history(FLAT, last=TRIES), KNOBS, "R7", "raft.temperature 1 -> 1.25", 1.0, 1),
        ("done", history((0.5, 0.97, 0.975, 0.98)), KNOBS, "R8", "raft.size: the next larger", 1.0, 1),
    ),
)
def test_the_change_and_what_it_affects(case, results, knobs, rule, change, factor, first):
    advices = advise(results, knobs)
    advice = of(rule, results, knobs)
    assert (advice.change, advice.lr_factor, advice.first_cycle) == (change, factor, first)
    assert advice.cycle == results[-1].cycle and "Hypothesis: " in advice.text
    assert lr_factor_of(advices) == factor


ALL_AT_ONCE = {"losses": SPIKED, "clip_fraction": 0.9, **NARROW}


@pytest.mark.parametrize(
    "case,results,expected,first",
    (
        (
            "R0 before all",
            history((0.3, 0.4, 0.3), multi_answer=True, last={**ALL_AT_ONCE, "update_ratio": 0.0}),
            {"R0", "R1", "R3", "R4", "R5"},
            "R0",
        ),
        (
            "R1 before R3 and R5",
            history((0.3, 0.4, 0.3), multi_answer=True, last=ALL_AT_ONCE),
            {"R1", "R3", "R4", "R5"},
            "R1",
        ),
        (
            "R2 before R3",
            history((0.2, 0.3, 0.3, 0.31), each=GOLD, last={"losses": SPIKED}),
            {"R2", "R3"},
            "R2",
        ),
        (
            "R3 before R5",
            history((0.3, 0.31, 0.31), multi_answer=True, last={"losses": SPIKED, "coverage": 0.1}),
            {"R3", "R5"},
            "R3",
        ),
        ("R3 before R7", history(FLAT, last={**TRIES, "losses": SPIKED}), {"R3", "R7"}, "R3"),
        (
            "R5 before R7",
            history(FLAT, multi_answer=True, last={**TRIES, "coverage": 0.1}),
            {"R5", "R7"},
            "R5",
        ),
        ("R7 before R6", history(FLAT, last={**TRIES, "losses": LEVEL}), {"R6", "R7"}, "R7"),
        ("R8 before R6", history((0.5, 0.97, 0.97, 0.97), last={"losses": LEVEL}), {"R6", "R8"}, "R8"),
        (
            "a conflict leaves what is not about the rate",
            history(FLAT, multi_answer=True, last={"losses": (*LEVEL[:6], 2.0, *LEVEL[:5]), "coverage": 0.1}),
            {"R3", "R5", "R6", "R9"},
            "R5",
        ),
    ),
)
def test_one_change_by_priority(case, results, expected, first):
    advices = advise(results, KNOBS)
    assert {a.rule for a in advices} == expected
    assert [a.rule for a in advices if a.change] == [first]
    assert [a.rule for a in advices if a.lr_factor != 1] in ([], [first])


def test_a_conflict_leaves_the_learning_rate_alone():
    advices = advise(history(FLAT, last={"losses": (*LEVEL[:6], 2.0, *LEVEL[:5])}), ADAPTIVE)
    assert lr_factor_of(advices) == 1.0 and not any(a.change for a in advices)
    assert "Conflict" in advices[-1].text and "R3" in advices[-1].text


def test_few_steps_silence_the_rate_but_not_the_rollback():
    results = history((0.2, 0.4, 0.3), last={"losses": FALLING[:3], "clip_fraction": 0.9})
    assert lr_factor_of(advise(results, ADAPTIVE)) == 1.0
    fall = of("R1", results, ADAPTIVE)
    assert not fall.change and "as a hypothesis, roll back to the weights of cycle 1" in fall.text
    flat = history(FLAT, last={"losses": (0.5, 0.5)})
    assert fired(flat) == {"R0", "R6"} and lr_factor_of(advise(flat, ADAPTIVE)) == 1.0


def test_clipping_supports_and_never_accuses():
    results = history((0.2, 0.35, 0.3), last={"clip_fraction": 0.83})
    assert of("R1", results).evidence["clip_fraction"] == 0.83
    note = of("R4", results)
    assert note.change == "" and note.lr_factor == 1.0


@pytest.mark.parametrize(
    "case,rates,clip_fractions",
    (
        ("1e-2 constant", (0.144, 0.196, 0.34, 0.484, 0.529, 0.559, 0.603), (0, 0.83, 0.86, 0.7, 0.6, 0.5, 0.44)),
        ("2e-3 constant", (0.144, 0.196, 0.268, 0.328, 0.426, 0.456, 0.547), (0.1,) * 7),
        ("2e-3 x 0.85", (0.144, 0.196, 0.253, 0.315, 0.389, 0.433, 0.482), (0.1,) * 7),
    ),
)
@pytest.mark.parametrize("losses", (FALLING, SPIKED, SWINGING), ids=("smooth", "spiked", "swinging"))
def test_measured_runs_that_gain_are_left_alone(case, rates, clip_fractions, losses):
    # Rates, and how far gradients were clipped in the first run, are measured; the losses are made up to look bad.
    changes = [
        {"clip_fraction": share, "losses": losses, "gold_loss": 1.03**n} for n, share in enumerate(clip_fractions)
    ]
    results = history(rates, each=changes)
    every = advise_all(results, ADAPTIVE)
    assert "R2" in {a.rule for a in every[-1]} and ("R3" in {a.rule for a in every[-1]}) == (losses != FALLING)
    for advices in every:
        assert not any(a.change for a in advices) and lr_factor_of(advices) == 1.0


def test_steady_climbs_are_not_flat():
    results = history((0.169, 0.199, 0.225, 0.244, 0.268, 0.285), last={"losses": LEVEL})
    steps = np.diff([r.held_out.rate for r in results[-3:]])
    assert max(steps) < 2 * math.hypot(results[-1].held_out.se, results[-2].held_out.se) and fired(results) == set()


@pytest.mark.parametrize("kind", ("exponential", "step"))
def test_decay_advice_never_names_cycle_1(kind):
    knobs = dataclasses.replace(KNOBS, lr_kind=kind)
    named = 0
    for rates in ((0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1), (0.3,) * 7, (0.2, 0.3, 0.4, 0.5, 0.3, 0.3, 0.3)):
        results = history(rates, each=[{**c, "losses": LEVEL} for c in DECAYED[:7]])
        for advice in (a for advices in advise_all(results, knobs) for a in advices if "lr_decay" in a.change):
            named += 1
            assert advice.first_cycle >= 2 and advice.cycle >= 2 and "decay never changes cycle 1" in advice.text
    assert named >= 4


def test_advice_depends_on_the_past_only():
    rates = (0.2, 0.35, 0.3, 0.31, 0.31, 0.97, 0.97, 0.97)
    results = history(rates, each=[{"losses": LEVEL if n % 2 else SPIKED} for n in range(8)])
    every = advise_all(results, KNOBS)
    assert len(every) == 8 and every[0] == [] and {a.rule for advices in every for a in advices} >= {"R1", "R3", "R8"}
    for n in range(8):
        assert every[n] == advise(results[: n + 1], KNOBS)
        other_future = [*results[: n + 1], *(cycle(m, 0.01) for m in range(n + 1, 8))]
        assert every[n] == advise_all(other_future, KNOBS)[n]


def test_comparisons_follow_the_weights_of_a_rollback():
    # Cycle 3 failed; cycle 4 starts from cycle 2 again, so that its gold loss rose by 1 % and not fell by 30 %.
    gold = (1.0, 1.0, 1.03, 1.5, 1.04)
    results = [cycle(n, r, gold_loss=g) for n, (r, g) in enumerate(zip((0.2, 0.3, 0.4, 0.2, 0.4), gold))]
    results[4] = cycle(4, 0.4, parent=2, gold_loss=1.06)
    assert fired(results) == {"R2"}
    assert fired([*results[:4], cycle(4, 0.4, parent=2, gold_loss=1.04)]) == set()


def test_the_loss_of_one_cycle():
    assert largest_spike(SPIKED) == (9, 1.2, pytest.approx(0.41))
    assert largest_spike(FALLING) is None and largest_spike((9.0, 1.0, 5.0)) is None
    assert largest_spike((0.5, math.nan, 0.5)).step == 2
    assert smallest_swing(SWINGING) == (4, pytest.approx(0.4 / 0.5))
    assert smallest_swing(SWINGING[:8]) is None  # 5 changes alternate.
    assert smallest_swing((0.50, 0.45) * 8) is None  # Noise of batches.
    assert ends((4.0, 2.0, 3.0, 3.0, 3.0, 3.0, 1.0, 2.0)) == (3.0, 1.5)


def test_noisy_batches_alone_are_seldom_rough():
    rng = np.random.default_rng(0)
    runs = rng.gamma(25, 1 / 25, (200, 54))  # A scatter of 20 % about a level.
    assert np.mean([largest_spike(losses) is not None for losses in runs]) < 0.15
    assert np.mean([smallest_swing(losses) is not None for losses in runs]) < 0.02


def test_a_loss_that_is_no_number_is_a_spike_and_its_evidence_is_json():
    results = history((0.3, 0.31), last={"losses": (0.5, 0.4, math.nan, 0.3, 0.3, 0.3), "update_ratio": math.nan})
    advice = of("R3", results)
    assert json.loads(json.dumps(advice._asdict(), allow_nan=False))["evidence"]["step"] == 3


@pytest.mark.parametrize(
    "results,message",
    (
        ([], "cycles 0, 1, 2"),
        (history(RISING)[1:], "cycles 0, 1, 2"),
        ([cycle(0, 0.1), cycle(1, 0.2, parent=1)], "cannot start"),
    ),
)
def test_histories_that_make_no_sense_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        advise(results, KNOBS)
