"""The sawtooth learning rate: the documents' values, and what its three events do to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.optim import (
    Stage,
    sawtooth_learning_rate,
    sawtooth_lr,
    sawtooth_schedule,
    scale_by_sawtooth,
    stages_in_steps,
)

BASE = 2e-4
STAGES = stages_in_steps(((2, 1.0, 0.1), (3, 1.0, 0.1), ("rest", 1.0, 0.05)), steps_per_epoch=1000, epochs=50)
SHORT = (Stage(0, 4, 1.0, 0.1), Stage(4, 10, 0.5, 0.1))


def test_stages_in_steps():
    assert (Stage(0, 2000, 1.0, 0.1), Stage(2000, 5000, 1.0, 0.1), Stage(5000, 50000, 1.0, 0.05)) == STAGES
    assert stages_in_steps(((1, 1.0, 0.5), (2, 2.0, 0.0)), 10, 3) == (Stage(0, 10, 1.0, 0.5), Stage(10, 30, 2.0, 0.0))


@pytest.mark.parametrize(
    "case,count,events,expected",
    (
        ("first step", 0, {}, 2e-4),
        ("middle of stage 1", 1000, {}, 1.1e-4),
        ("restart by stage 2", 2000, {}, 2e-4),
        ("middle of stage 2", 3500, {}, 1.1e-4),
        ("restart by stage 3", 5000, {}, 2e-4),
        ("the end", 50000, {}, 1e-5),
        ("beyond the end", 60000, {}, 1e-5),
        ("anchored at this step", 1000, {"anchor": 1000}, 2e-4),
        ("half way from the anchor to the stage's end", 1500, {"anchor": 1000}, 1.1e-4),
        ("an anchor of an earlier stage is forgotten", 3500, {"anchor": 1000}, 1.1e-4),
        ("anchored on a stage border", 2000, {"anchor": 2000}, 2e-4),
        ("anchored twice in a stage: the later one counts", 1800, {"anchor": 1600}, 1.1e-4),
        ("anchored at the last step of a stage", 1999, {"anchor": 1999}, 2e-4),
        ("anchored at the very end is no NaN", 50000, {"anchor": 50000}, 2e-4),
        ("raised: the peak, whatever the tooth says", 1999, {"cutoff_raised": True}, 2e-4),
        ("scaled", 1000, {"scale": 0.5}, 0.55e-4),
        ("raised and scaled", 1700, {"scale": 0.5, "cutoff_raised": True}, 1e-4),
    ),
)
def test_values(case, count, events, expected):
    assert float(sawtooth_lr(count, STAGES, BASE, **events)) == pytest.approx(expected, rel=1e-5)


def run_transform(events_by_step: dict[int, dict], steps: int, stages=SHORT, base=1.0) -> list[float]:
    """Learning rates that the transform really applied: minus the update of a gradient of one."""
    tx = scale_by_sawtooth(stages, base)
    params = {"w": jnp.ones(())}
    state = tx.init(params)
    applied = []
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update({"w": jnp.ones(())}, state, params, **events_by_step.get(step, {}))
        applied.append(-float(updates["w"]))
        assert float(sawtooth_learning_rate(state)) == pytest.approx(applied[-1])
    return applied


def lr(count, **events):
    return float(sawtooth_lr(count, SHORT, 1.0, **events))


def test_without_events_it_is_the_schedule():
    schedule = sawtooth_schedule(SHORT, 1.0)
    np.testing.assert_allclose(run_transform({}, 12), [float(schedule(c)) for c in range(12)], rtol=1e-6)


def test_restart_lasts_to_the_end_of_the_stage_only():
    expected = [lr(c, anchor=2 if c >= 2 else 0) for c in range(10)]
    np.testing.assert_allclose(run_transform({2: {"restart": True}}, 10), expected, rtol=1e-6)
    assert expected[2] == 1.0 and expected[3] != lr(3) and expected[5] == lr(5)


def test_restart_twice_in_a_stage_and_on_a_border():
    applied = run_transform({1: {"restart": True}, 3: {"restart": True}, 4: {"restart": True}}, 6)
    np.testing.assert_allclose(
        applied, [lr(0), lr(1, anchor=1), lr(2, anchor=1), lr(3, anchor=3), 0.5, lr(5)], rtol=1e-6
    )


def test_restart_at_the_last_step_is_the_peak_and_finite():
    applied = run_transform({9: {"restart": True}}, 11)
    assert applied[9] == pytest.approx(0.5) and np.isfinite(applied).all()


def test_pulse_changes_one_step_only():
    plain, pulsed = run_transform({}, 10), run_transform({3: {"pulse": True}}, 10)
    assert pulsed[3] == pytest.approx(1.0)
    np.testing.assert_allclose(pulsed[:3] + pulsed[4:], plain[:3] + plain[4:], rtol=1e-6)


def test_reductions_compound_and_stay():
    applied = run_transform({2: {"reduce_by": 0.5}, 5: {"reduce_by": 0.7, "restart": True}}, 10)
    scales = [1, 1, 0.5, 0.5, 0.5] + [0.35] * 5
    expected = [s * lr(c, anchor=5 if c >= 5 else 0) for c, s in enumerate(scales)]
    np.testing.assert_allclose(applied, expected, rtol=1e-6)


def test_the_physics_document_restart_and_half():
    """Its log: 1.8e-4 before the raise, 1.0e-4 after it: restart to the peak, and half."""
    applied = run_transform({300: {"restart": True, "reduce_by": 0.5}}, 301, STAGES, BASE)
    assert applied[299] == pytest.approx(1.9e-4, rel=0.02) and applied[300] == pytest.approx(1e-4)


def test_events_never_recompile():
    tx = scale_by_sawtooth(SHORT, 1.0)
    state = tx.init({})
    update = jax.jit(
        lambda state, *e: tx.update({"w": jnp.ones(3)}, state, restart=e[0], pulse=e[1], reduce_by=e[2])[1]
    )
    for events in ((False, False, 1.0), (True, False, 1.0), (False, True, 0.5)):
        state = update(state, np.bool_(events[0]), np.bool_(events[1]), np.float32(events[2]))
    assert update._cache_size() == 1


def test_it_keeps_dtypes_and_works_in_a_chain_under_scan():
    tx = optax.chain(optax.scale_by_adam(), scale_by_sawtooth(SHORT, 0.1))
    params = {"w": jnp.ones(3, jnp.bfloat16)}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), sawtooth_learning_rate(state)

    (params, state), rates = jax.lax.scan(step, (params, tx.init(params)), length=10)
    assert params["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(rates, [0.1 * lr(c) for c in range(10)], rtol=1e-6)


def test_reading_the_learning_rate_needs_exactly_one_sawtooth():
    with pytest.raises(ValueError, match="holds 0 SawtoothState"):
        sawtooth_learning_rate(optax.adam(1.0).init({}))
    two = optax.chain(scale_by_sawtooth(SHORT, 1.0), scale_by_sawtooth(SHORT, 1.0))
    with pytest.raises(ValueError, match="holds 2 SawtoothState"):
        sawtooth_learning_rate(two.init({}))
