"""The plan of the next cycle as a table of histories."""

import dataclasses

import pytest

from fftlm_jax.config.schema import RaftConfig
from fftlm_jax.raft.cycle_lr import CycleLR
from fftlm_jax.raft.cycle_result import CycleResult, HeldOutResult, SampleResult, TrainResult, best_of
from fftlm_jax.raft.selection import has_regressed, next_plan, rollbacks
from tests.tiny import tiny

DECAY = CycleLR("exponential", 1e-3, 0.5)


def raft(**changes) -> RaftConfig:
    return dataclasses.replace(tiny().raft, cycles=8, **changes)


def held_out(rate, se=0.01):
    return HeldOutResult(rate, se, rate, rate, {"1": rate}, 1.0, 1.0, None)


def samples(level=1, level_rate=0.0):
    return SampleResult(
        prompts=10, samples=80, rate=0.1, se=0.01, pass_at={"1": 0.1}, never=5, always=0, kept=5,
        right_among_kept=1.0, coverage=0.5, unique_valid=1.0, distinct_3grams=0.5, longest_repeat=0.1, truncated=0.0,
        mean_length=4.0, level=level, level_rate=level_rate,
    )  # fmt: skip


def history(*rates, parents=None, lr=1e-3, **sampled):
    train = TrainResult(10, lr, lr, 10 * lr, (1.0,), {"0.5": 1.0}, 1.0, 0.0, 1e-3)
    parents = parents or [max(0, cycle - 1) for cycle in range(len(rates))]
    return [
        CycleResult(c, parents[c], held_out(rate), samples(**sampled) if c else None, train if c else None)
        for c, rate in enumerate(rates)
    ]


def test_the_best_is_the_earliest_of_equals():
    assert best_of(history(0.1, 0.3, 0.2, 0.3)).cycle == 1


def test_a_fall_counts_beyond_two_standard_errors_of_the_difference():
    assert not has_regressed(history(0.1, 0.300, 0.273))
    assert has_regressed(history(0.1, 0.300, 0.271))
    assert not has_regressed(history(0.1, 0.3, 0.4))


def test_a_healthy_run_goes_on_from_the_last_cycle_at_the_schedule():
    plan = next_plan(history(0.1, 0.2, 0.3), raft(), DECAY, levels=1)
    assert (plan.cycle, plan.parent, plan.level) == (3, 2, 1) and plan.lr == DECAY(3)


def test_rollback_goes_to_the_best_with_a_lower_rate_and_stays_lower():
    results = history(0.1, 0.4, 0.2)
    plan = next_plan(results, raft(), DECAY, levels=1)
    assert plan.parent == 1 and plan.lr == pytest.approx(0.7 * DECAY(3))
    results = history(0.1, 0.4, 0.2, 0.45, parents=[0, 0, 1, 1])
    assert rollbacks(results) == 1
    plan = next_plan(results, raft(), DECAY, levels=1)
    assert plan.parent == 3 and plan.lr == pytest.approx(0.7 * DECAY(4))


def test_rollbacks_end():
    results = history(0.1, 0.4, 0.2, 0.2, 0.2, parents=[0, 0, 1, 1, 1])
    assert rollbacks(results) == 2
    assert next_plan(results, raft(rollbacks=2), DECAY, levels=1).parent == 4


def test_other_answers_to_a_fall():
    results = history(0.1, 0.4, 0.2)
    assert next_plan(results, raft(on_regress="stop"), DECAY, levels=1) is None
    plan = next_plan(results, raft(on_regress="continue"), DECAY, levels=1)
    assert plan.parent == 2 and plan.lr == DECAY(3)


def test_the_run_ends_after_its_cycles():
    assert next_plan(history(*[0.1] * 9), raft(), DECAY, levels=1) is None


def test_adaptive_compounds_on_the_last_rate():
    adaptive = CycleLR("adaptive", 1e-3, floor=1e-5)
    assert next_plan(history(0.1), raft(), adaptive, 1, 1.4).lr == 1e-3  # Advice never changes cycle 1.
    assert next_plan(history(0.1, 0.2, lr=5e-4), raft(), adaptive, 1, 0.7).lr == pytest.approx(3.5e-4)
    assert next_plan(history(0.1, 0.2, lr=1e-5), raft(), adaptive, 1, 0.7).lr == 1e-5
    # A fall that is rolled back reduces once, whether the advisor says so too or not.
    for factor in (1.0, 0.7, 1.4):
        plan = next_plan(history(0.1, 0.4, 0.2, lr=1e-3), raft(), adaptive, 1, factor)
        assert plan.parent == 1 and plan.lr == pytest.approx(7e-4)


def test_adaptive_remembers_its_rate_over_a_cycle_that_kept_nothing():
    adaptive = CycleLR("adaptive", 1e-3)
    results = history(0.1, 0.2, 0.2, lr=3e-4)
    results[-1] = dataclasses.replace(results[-1], train=None)
    assert next_plan(results, raft(), adaptive, 1, 1.0).lr == pytest.approx(3e-4)


def test_levels_go_up_one_at_a_time_and_end():
    r = raft(first_level=2, level_rate=0.5)
    assert next_plan(history(0.1), r, DECAY, levels=6).level == 3
    assert next_plan(history(0.1, 0.1, level=3, level_rate=0.4), r, DECAY, levels=6).level == 3
    assert next_plan(history(0.1, 0.1, level=3, level_rate=0.5), r, DECAY, levels=6).level == 4
    assert next_plan(history(0.1, 0.1, level=6, level_rate=0.9), r, DECAY, levels=6).level == 6


def test_a_result_survives_json():
    import json

    for result in history(0.1, 0.2):
        assert CycleResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
