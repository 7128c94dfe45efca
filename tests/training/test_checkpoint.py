"""Checkpoints: what is on disk is whole or refused by name; the best and the last survive, also across a restart."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.checkpoints.contents import TrainState
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.checkpoints.saved_step import manifest_fault, step_numbers
from fftlm_jax.checkpoints.verification import state_hash
from fftlm_jax.optim import Stage, scale_by_sawtooth
from fftlm_jax.runtime.errors import CheckpointError, SaveError
from fftlm_jax.training.progress import Progress


def make_state(value: float = 1.0) -> TrainState:
    params = {"a": {"b": jnp.full((3, 4), value)}, "c": jnp.arange(5, dtype=jnp.bfloat16)}
    tx = optax.chain(optax.scale_by_adam(), scale_by_sawtooth((Stage(0, 9, 1.0, 0.1),), 0.1))
    return TrainState(params, tx.init(params), None, jnp.int32(7), jnp.int32(0), jnp.array(False))


HOST = {"controller": {"cutoff": 4, "losses": [0.1, 1 / 3, 5e-324], "raises": []}}
ABSTRACT = jax.eval_shape(make_state)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    Checkpoints(tmp_path / "checkpoints").save(3, make_state(np.pi), HOST)
    restored = Checkpoints(tmp_path / "checkpoints").restore(ABSTRACT)
    assert restored.step == 3 and restored.host == HOST
    jax.tree.map(np.testing.assert_array_equal, restored.arrays, make_state(np.pi))
    assert isinstance(restored.arrays, TrainState) and restored.arrays.params["c"].dtype == jnp.bfloat16


def test_nothing_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "checkpoints").restore(ABSTRACT) is None
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7").write_text("a stray file")
    assert Checkpoints(tmp_path / "checkpoints").restore(ABSTRACT) is None


def test_the_last_and_the_best_survive_a_restart(tmp_path):
    first = Checkpoints(tmp_path / "checkpoints", keep_last=2, keep_best=1)
    for step, bpb in ((1, 3.0), (2, 2.0), (3, None), (4, 2.5)):
        first.save(step, make_state(), HOST, bpb)
    first.close()
    second = Checkpoints(tmp_path / "checkpoints", keep_last=2, keep_best=1)
    for step, bpb in ((5, 2.2), (6, None), (7, 2.1)):
        second.save(step, make_state(), HOST, bpb)
    assert step_numbers(tmp_path / "checkpoints") == [2, 6, 7]


def damage_flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("damage", (damage_flip, lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-1])))
def test_every_damaged_file_is_found_and_the_step_before_is_used(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=9)
    checkpoints.save(1, make_state(1.0), HOST)
    checkpoints.save(2, make_state(2.0), HOST)
    step = tmp_path / "checkpoints" / "2"
    files = [p for p in step.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        damage(file)
        assert manifest_fault(step) is not None, file
        file.write_bytes(content)
        assert manifest_fault(step) is None
    damage(files[0])
    assert Checkpoints(tmp_path / "checkpoints").restore(ABSTRACT).step == 1
    assert (tmp_path / "quarantine" / "2").is_dir()
    Checkpoints(tmp_path / "checkpoints", keep_last=9).save(2, make_state(3.0), HOST)
    assert Checkpoints(tmp_path / "checkpoints").restore(ABSTRACT).arrays.params["a"]["b"][0, 0] == 3.0


@pytest.mark.parametrize(
    "case,change,message",
    (
        ("shape", lambda p: {**p, "c": jnp.zeros(6, jnp.bfloat16)}, r"params/c is \(\(5,\).*must be \(\(6,\)"),
        (
            "dtype, which orbax would cast",
            lambda p: {**p, "c": jnp.zeros(5)},
            "params/c is .*bfloat16.*must be .*float32",
        ),
        ("missing", lambda p: {**p, "d": jnp.zeros(2)}, "params/d is missing"),
        ("unexpected", lambda p: {"a": p["a"]}, "params/c is .* must be absent"),
    ),
)
def test_arrays_that_do_not_fit_are_named(tmp_path, case, change, message):
    Checkpoints(tmp_path / "checkpoints").save(1, make_state(), HOST)
    wanted = make_state()._replace(params=change(make_state().params))
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path / "checkpoints").restore(jax.eval_shape(lambda: wanted))


def test_a_place_that_cannot_be_written_is_a_save_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(SaveError, match="step 1 could not be saved"):
        Checkpoints(tmp_path / "checkpoints").save(1, make_state(), HOST)


def test_saving_an_older_step_is_no_silent_success(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="keep at least 2"):
        Checkpoints(tmp_path / "checkpoints", keep_last=1)
    checkpoints.save(5, make_state(), HOST)
    with pytest.raises(SaveError):
        checkpoints.save(5, make_state(), HOST)


def test_the_state_hash_sees_every_bit_and_the_controller():
    base = state_hash(make_state(), HOST["controller"])
    assert state_hash(make_state(), dict(HOST["controller"])) == base
    assert state_hash(make_state(np.nextafter(np.float32(1), np.float32(2))), HOST["controller"]) != base
    assert state_hash(make_state()._replace(step=jnp.int32(8)), HOST["controller"]) != base
    assert state_hash(make_state(), {**HOST["controller"], "cutoff": 8}) != base


def test_progress_goes_on_from_what_was_saved():
    """The best score too: a resumed run must not take a worse one for the best yet."""
    first, second = Progress(), Progress()
    first.record(2.5)
    first.rank({"bpb": 3.0})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert {**second.state_dict(), "elapsed": 0} == {**first.state_dict(), "elapsed": 0}
    assert not second.rank({"bpb": 3.5}) and second.rank({"bpb": 2.5})
