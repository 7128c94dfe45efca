"""The curriculum on the host: plateau rule, ladder, controller, and the learning rate's answer."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.curriculum import (
    Answer,
    Controller,
    Raise,
    Rule,
    Spike,
    adaptive_cutoff,
    adaptive_factor,
    answer_to_raise,
    curriculum_cutoff,
    earliest_raises,
    improvement_bound,
    next_rung,
    relative_improvement,
    resolve_ladder,
    starting_cutoff,
)

FLAT, FALLING = [2.86] * 50, [3.0 - 0.01 * i for i in range(50)]
BARELY = [1.0] * 25 + [0.9951] * 25  # Improves by 0.49 %.
ENOUGH = [1.0] * 25 + [0.9949] * 25  # Improves by 0.51 %.


@pytest.mark.parametrize(
    "case,losses,window,expected",
    (
        ("no decision on too few", FLAT[:49], 50, None),
        ("flat", FLAT, 50, 0.0),
        ("only the last window counts", [100.0] * 10 + BARELY, 50, 0.0049),
        ("a rising loss improves by less than nothing", [1.0, 1.0, 1.5, 1.5], 4, -0.5),
        ("means of the halves", [4.0, 2.0, 2.0, 1.0], 4, 0.5),
        ("a loss of zero", [0.0] * 4, 4, 0.0),
    ),
)
def test_relative_improvement(case, losses, window, expected):
    assert relative_improvement(losses, window) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    "case,epoch,cutoff,losses,options,expected",
    (
        ("flat at epoch 2", 2, 128, FLAT, {}, (256, True)),
        ("one rung at a time", 40, 128, FLAT, {}, (256, True)),
        ("from 256", 2, 256, FLAT, {}, (512, True)),
        ("the last rung is freq_bins", 2, 512, FLAT, {}, (513, True)),
        ("at the top", 2, 513, FLAT, {}, (513, False)),
        ("never before epoch 2", 1, 128, FLAT, {}, (128, False)),
        ("not before a later minimum", 2, 128, FLAT, {"min_epoch_before_raise": 3}, (128, False)),
        ("still falling", 2, 128, FALLING, {}, (128, False)),
        ("too few losses", 2, 128, FLAT[:49], {}, (128, False)),
        ("0.49 % is a plateau", 2, 128, BARELY, {}, (256, True)),
        ("0.51 % is none", 2, 128, ENOUGH, {}, (128, False)),
        ("a LARGER threshold raises sooner", 2, 128, ENOUGH, {"plateau_threshold": 0.01}, (256, True)),
        ("a smaller one raises later", 2, 128, BARELY, {"plateau_threshold": 0.003}, (128, False)),
        ("a shorter window", 2, 128, FLAT[:30], {"plateau_window": 30}, (256, True)),
        ("a rising loss is a plateau", 2, 128, FALLING[::-1], {}, (256, True)),
        ("64 is legal", 2, 64, FLAT, {"ladder": (64, 128)}, (128, True)),
        ("a cutoff between rungs goes to the next", 2, 200, FLAT, {}, (256, True)),
    ),
)
def test_adaptive_cutoff(case, epoch, cutoff, losses, options, expected):
    assert adaptive_cutoff(epoch, cutoff, losses, 513, **options) == expected


def noisy_fall(improvement: float, window: int, noise: float, seed: int, level: float = 2.0) -> np.ndarray:
    """Losses on a straight line whose half means fall by exactly `improvement`, plus independent noise."""
    half = window // 2
    slope = improvement * level / half
    line = level + slope * (half - 1) / 2 - slope * np.arange(window)
    return line + noise * np.random.default_rng(seed).normal(size=window)


def test_the_bound_without_noise_is_the_improvement():
    for line in (noisy_fall(0.02, 50, 0.0, 0), noisy_fall(-0.01, 30, 0.0, 0), [0.0] * 30):
        expected = relative_improvement(line, len(line))
        assert improvement_bound(line, len(line), 0.99) == pytest.approx(expected, abs=1e-12)
    assert improvement_bound(FLAT[:49], 50, 0.95) is None
    with pytest.raises(ValueError, match="take 4 or more"):
        improvement_bound(FLAT, 3, 0.95)


def test_the_bound_grows_with_the_confidence_and_the_noise_but_not_with_the_fall():
    losses = noisy_fall(0.0, 50, 0.05, seed=1)
    bounds = [improvement_bound(losses, 50, c) for c in (0.5, 0.8, 0.95, 0.99)]
    assert bounds[0] == pytest.approx(relative_improvement(losses, 50)) and bounds == sorted(bounds)
    widths = []
    for improvement, noise in ((0.0, 0.05), (0.05, 0.05), (0.0, 0.1)):
        window = noisy_fall(improvement, 50, noise, seed=1)
        widths.append(improvement_bound(window, 50, 0.95) - relative_improvement(window, 50))
    assert widths[1] == pytest.approx(widths[0], rel=0.05) and widths[2] == pytest.approx(2 * widths[0], rel=0.05)


@pytest.mark.parametrize("window", (10, 30, 100))
def test_noise_raises_too_soon_no_oftener_than_the_confidence_allows(window):
    """The true improvement lies just above the threshold, so every raise is false; the simple rule is a coin flip."""
    trials, threshold = 2000, 0.005
    falls = [noisy_fall(1.01 * threshold, window, 0.1, seed) for seed in range(trials)]

    def rate(confidence):
        options = {"plateau_window": window, "plateau_threshold": threshold, "plateau_confidence": confidence}
        return np.mean([adaptive_cutoff(2, 128, losses, 513, **options)[1] for losses in falls])

    three_errors = 3 * (0.05 * 0.95 / trials) ** 0.5
    assert 0.05 - three_errors < rate(0.95) < 0.05 + three_errors
    assert rate(0.8) < 0.2 + 3 * (0.2 * 0.8 / trials) ** 0.5
    assert 0.46 < rate(None) < 0.54


@pytest.mark.parametrize("confidence", (None, 0.95))
def test_a_larger_threshold_never_raises_later(confidence):
    losses = 2.0 + 1.5 * np.exp(-np.arange(600) / 100) + np.random.default_rng(0).normal(scale=0.002, size=600)
    first = []
    for threshold in (0.002, 0.005, 0.01, 0.02):
        raises = drive(make_controller(window=50, threshold=threshold, confidence=confidence, min_epoch=0), losses)
        first.append(raises[0][0])
    assert first == sorted(first, reverse=True) and first[0] > first[-1]


def test_the_confidence_rule_waits_where_noise_hides_the_fall():
    losses = noisy_fall(0.004, 50, 0.1, seed=3)
    assert relative_improvement(losses, 50) < 0.005 < improvement_bound(losses, 50, 0.95)
    assert adaptive_cutoff(2, 128, losses, 513) == (256, True)
    assert adaptive_cutoff(2, 128, losses, 513, plateau_confidence=0.95) == (128, False)


@pytest.mark.parametrize(
    "epoch,expected", ((0, 128), (1, 128), (2, 256), (4, 256), (5, 512), (9, 512), (10, 513), (99, 513))
)
def test_the_documents_table(epoch, expected):
    assert curriculum_cutoff(epoch, 513) == expected


def test_tables_of_shorter_windows():
    assert curriculum_cutoff(2, 129) == 129, "the documents' bins beyond the window mean the full band"
    assert curriculum_cutoff(3, 129, table=((0, 0.25), (3, 0.5))) == 64


def test_ladder():
    assert resolve_ladder((0.25, 0.5, "full"), 256) == (32, 64, 129)
    assert next_rung((32, 64, 129), 32) == 64 and next_rung((32, 64), 64) is None


@pytest.mark.parametrize(
    "case,options,expected",
    (
        ("fresh weights start at the initial cutoff", {}, 128),
        ("weights of epoch 0", {"epoch": 0}, 128),
        ("old weights start where the table says", {"epoch": 6}, 512),
        ("never below the coefficients in use", {"coefficients_in_use": 33}, 256),
        ("exactly covered", {"coefficients_in_use": 32}, 128),
        ("all in use", {"coefficients_in_use": 128}, 512),
        ("the largest of all", {"epoch": 2, "coefficients_in_use": 65}, 512),
        ("no rung covers them", {"coefficients_in_use": 128, "ladder": (128, 256)}, 513),
    ),
)
def test_where_weights_start(case, options, expected):
    options = {"ladder": (128, 256, 512, 513), "kernel_len": 128, **options}
    assert starting_cutoff(128, freq_bins=513, **options) == expected


@pytest.mark.parametrize(
    "restart,factor,old,new,expected",
    (
        ("tooth", 1.0, 128, 256, Answer(True, False, 1.0)),
        ("pulse", 0.7, 128, 256, Answer(False, True, 0.7)),
        ("none", "sqrt_ratio", 128, 512, Answer(False, False, 0.5)),
        ("none", "sqrt_ratio", 256, 512, Answer(False, False, 0.5**0.5)),
        ("tooth", "inverse_ratio", 128, 512, Answer(True, False, 0.25)),
        ("tooth", "adaptive", 128, 512, Answer(True, False, 1.0)),
    ),
)
def test_answer_to_raise(restart, factor, old, new, expected):
    assert answer_to_raise(restart, factor, old, new) == pytest.approx(expected)


@pytest.mark.parametrize("spike,expected", ((0.45, 0.5), (0.3, 0.7), (0.2, 0.7), (0.1, 0.9), (0.0, 0.9), (-1.0, 0.9)))
def test_the_adaptive_factor_of_the_document(spike, expected):
    assert adaptive_factor(spike) == expected
    assert Answer(True, False, 0.5).reduced_by(expected) == Answer(True, False, 0.5 * expected)


def make_controller(name="plateau", **changes) -> Controller:
    options = {
        "ladder": (128, 256, 512, 513), "freq_bins": 513, "check_every": 10, "steps_per_epoch": 20, "min_epoch": 1,
        "window": 4, "threshold": 0.005, "schedule": ((0, 128), (2, 256), (5, 512), (10, "full")), **changes,
    }  # fmt: skip
    return Controller(Rule(name=name, **options), cutoff=513 if name == "none" else 128)


def drive(controller: Controller, losses) -> list[tuple[int, int, int]]:
    raises = []
    for step, loss in enumerate(losses):
        event = controller.check(step)
        if event:
            raises.append((event.step, event.old, event.new))
        controller.record(loss)
    return raises


def test_a_flat_loss_climbs_the_ladder_once_the_window_is_full_again():
    assert drive(make_controller(), [2.0] * 100) == [(20, 128, 256), (30, 256, 512), (40, 512, 513)]


def test_a_falling_loss_never_raises():
    assert drive(make_controller(), [100 * 0.9**i for i in range(100)]) == []


def test_the_history_is_cleared_on_a_raise():
    controller = make_controller(window=12)
    assert drive(controller, [2.0] * 60) == [(20, 128, 256), (40, 256, 512)], "at 30 only ten losses were seen at 256"


def test_a_finite_spike_is_no_plateau_to_the_confidence_test_alone():
    """To the documents' formula it is one: the loss rose, so it did not fall."""
    losses = [4 * 0.99**step for step in range(200)]
    losses[95] += 20
    raises = {c: drive(make_controller(window=50, confidence=c), losses) for c in (0.95, None)}
    assert raises == {0.95: [], None: [(100, 128, 256)]}


def test_checks_happen_when_due_only():
    assert drive(make_controller(check_every=20, min_epoch=0), [2.0] * 50) == [(20, 128, 256), (40, 256, 512)]
    assert not make_controller().is_due(0) and not make_controller("none").is_due(10)


def test_nonfinite_losses_never_enter():
    controller = make_controller()
    for loss in (1.0, float("nan"), 2.0, float("inf"), -float("inf")):
        controller.record(loss)
    assert controller.losses == [1.0, 2.0]


def test_the_schedule_goes_by_epoch_and_never_down():
    assert drive(make_controller("schedule"), [2.0] * 250) == [(40, 128, 256), (100, 256, 512), (200, 512, 513)]
    controller = make_controller("schedule")
    controller.cutoff = 512
    assert drive(controller, [2.0] * 150) == []


def test_the_schedule_is_checked_at_every_epoch_whatever_check_every_says():
    assert drive(make_controller("schedule", check_every=33), [2.0] * 120) == [(40, 128, 256), (100, 256, 512)]


def test_none_is_the_full_band_for_ever():
    controller = make_controller("none")
    assert drive(controller, [2.0] * 200) == [] and controller.cutoff == 513 and controller.upcoming_cutoff() is None


@pytest.mark.parametrize("name", ("plateau", "schedule"))
def test_the_upcoming_cutoff_is_what_the_next_raise_sets(name):
    controller = make_controller(name)
    for step in range(260):
        upcoming = controller.upcoming_cutoff()
        event = controller.check(step)
        if event:
            assert event.new == upcoming
        controller.record(2.0)
    assert controller.cutoff == 513 and controller.upcoming_cutoff() is None


@pytest.mark.parametrize("confidence", (None, 0.95))
def test_state_survives_json_exactly_and_decides_alike(confidence):
    losses = [2.0 + 0.1 / (i + 3) for i in range(100)]
    straight, first = make_controller(confidence=confidence), make_controller(confidence=confidence)
    expected = drive(straight, losses)
    events = []
    for step, loss in enumerate(losses):
        if step in (7, 21, 35):
            second = make_controller(confidence=confidence)
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            first = second
        event = first.check(step)
        events += [(event.step, event.old, event.new)] if event else []
        first.record(loss)
    assert events == expected and first.state_dict() == straight.state_dict()
    assert isinstance(first.raises[0], Raise)
    assert all((event.bound is None) == (confidence is None) for event in first.raises)


def test_a_state_saved_before_bounds_were_kept_is_read():
    controller = make_controller()
    controller.load_state_dict({"cutoff": 256, "losses": [2.0], "raises": [[20, 128, 256, 0.001]]})
    assert controller.raises == [Raise(20, 128, 256, 0.001, None)]


def test_a_spike_is_measured_once_between_equal_numbers_of_losses():
    controller = make_controller("schedule", spike_steps=3, window=2)
    losses = [5.0] * 37 + [3.0, 3.0, 3.0] + [4.0, 5.0, 6.0] + [1.0] * 30
    found = []
    for step, loss in enumerate(losses):
        if step == 42:
            again = make_controller("schedule", spike_steps=3, window=2)
            again.load_state_dict(json.loads(json.dumps(controller.state_dict())))
            controller = again
        assert controller.spike_is_due(step) == (step == 43)
        found.append(controller.measure_spike(step))
        controller.check(step)
        controller.record(loss)
    assert [f for f in found if f] == [Spike(raised_at=40, before=3.0, after=5.0)]
    assert found[43].height == 2.0


def test_a_raise_ends_the_measurement_of_the_one_before():
    controller = make_controller(spike_steps=15)
    found = [(controller.measure_spike(step), controller.check(step), controller.record(2.0)) for step in range(60)]
    assert [r.step for _, r, _ in found if r] == [20, 30, 40]
    assert [(step, spike.raised_at) for step, (spike, *_) in enumerate(found) if spike] == [(55, 40)]


def test_a_saved_state_never_lowers_the_cutoff():
    controller = make_controller()
    controller.cutoff = 512
    with pytest.raises(ValueError, match="never regresses"):
        controller.load_state_dict(make_controller().state_dict())


def raises_step_by_step(rule, cutoff, steps):
    """As a run makes them whose every check finds a plateau: slow, and plainly right."""
    controller = Controller(dataclasses.replace(rule, threshold=math.inf), cutoff)
    for step in range(steps):
        if controller.upcoming_cutoff() is None:
            break
        controller.check(step)
        controller.record(1.0)
    return controller.raises


RULES = st.builds(
    Rule,
    name=st.sampled_from(("plateau", "schedule", "none")),
    ladder=st.sets(st.integers(1, 16), max_size=5).map(lambda rungs: (*sorted(rungs), 17)),
    freq_bins=st.just(17),
    check_every=st.integers(1, 12),
    steps_per_epoch=st.integers(1, 12),
    min_epoch=st.integers(0, 6),
    window=st.integers(2, 10).map(lambda half: 2 * half),
    threshold=st.sampled_from((-1.0, 0.0, 0.005)),
    schedule=st.dictionaries(st.integers(0, 15), st.integers(1, 20), min_size=1, max_size=5).map(
        lambda rows: (*sorted(rows.items()),)
    ),
    spike_steps=st.sampled_from((0, 3, 30)),
    confidence=st.sampled_from((None, 0.5, 0.95)),
)


@settings(derandomize=True, database=None, deadline=None, max_examples=400)
@given(RULES, st.integers(1, 17), st.integers(0, 150))
def test_the_earliest_raises_are_those_found_step_by_step(rule, cutoff, steps):
    assert earliest_raises(rule, cutoff, steps) == raises_step_by_step(rule, cutoff, steps)


def test_the_earliest_raises_of_a_run_without_end_are_found_at_once():
    """Step by step this would take as long as the suite may."""
    rule = make_controller(check_every=1, steps_per_epoch=500, min_epoch=10**12).rule
    found = earliest_raises(rule, 128, 10**15)
    assert [(r.step, r.new) for r in found] == [(5 * 10**14, 256), (5 * 10**14 + 4, 512), (5 * 10**14 + 8, 513)]
    rule = make_controller("schedule", schedule=((0, 128), (10**12, "full"))).rule
    assert [(r.step, r.new) for r in earliest_raises(rule, 128, 10**15)] == [(2 * 10**13, 513)]


def test_the_curriculum_imports_no_jax():
    code = "import sys, fftlm_jax.curriculum; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
