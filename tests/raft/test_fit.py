"""One training of a fine-tuning run: micro-batches, steps that are passed over, averages, and several devices."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.config.reading import read_config
from fftlm_jax.optim import scale_by_given_learning_rate
from fftlm_jax.raft.fine_tuning import Rows, fit, make_fine_tune_step, rows_of
from fftlm_jax.raft.raft_parts import mesh_of
from fftlm_jax.runtime.errors import ConfigError, NonFiniteError
from fftlm_jax.spectral import LowPass
from tests.model.lively import graph_and_params
from tests.raft.raft_run import raft_values
from tests.tiny import ROOT, tiny

MODEL = tiny(objective__name="next_byte", model__n_layers=1).model
LOW_PASS = LowPass(freq_bins(MODEL.seq_len), freq_bins(MODEL.seq_len))
TX = optax.chain(optax.scale_by_adam(), scale_by_given_learning_rate())
# Eight of them; the first four answers have one byte more than the others.
PAIRS = [(b"%d+%d=" % (i, j), b"%d\n" % (i + j)) for i in (9, 8, 1, 2) for j in (3, 2)]
RATES = np.full(4, 1e-2)


@functools.cache
def graph_and_weights():
    return graph_and_params(MODEL)


@functools.cache
def step_of(**options):
    return make_fine_tune_step(graph_and_weights()[0], LOW_PASS, TX, lora=None, **options)


def batches(poisoned=()):
    """The same rows at every step; those of a poisoned step weigh NaN."""
    rows = rows_of(PAIRS, 8)
    return [Rows(rows.bytes_NW, np.float32(np.nan) * rows.weight_NW) if i in poisoned else rows for i in range(4)]


def fitted(folder, step, rates=RATES, micro_batches=1, poisoned=(), pause=lambda done: False):
    options = {"micro_batches": micro_batches, "snapshot": folder / "fit.part.npz", "every": 100, "pause": pause}
    options["say"] = print
    params, rows = graph_and_weights()[1], batches(poisoned)[: len(rates)]
    return fit(step, {}, jax.tree.map(jnp.asarray, params), iter(rows), rates, jax.random.key(0), **options)


def assert_near(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), jax.device_get(a), jax.device_get(b))


def test_micro_batches_are_one_large_batch(tmp_path):
    """Also where they hold unequal numbers of bytes that count: each byte counts the same."""
    whole, cut = (fitted(tmp_path, step_of(), micro_batches=count) for count in (1, 4))
    np.testing.assert_allclose(whole.loss, cut.loss, rtol=1e-5)
    np.testing.assert_allclose(whole.grad_norm, cut.grad_norm, rtol=1e-4)
    assert whole.loss[-1] < whole.loss[0]


def test_a_step_that_is_not_finite_is_passed_over_as_often_as_it_may(tmp_path, capsys):
    calm = step_of(skip_nonfinite=1)
    result = fitted(tmp_path, calm, poisoned=(1,))
    assert "step 2 of 4: loss nan" in (told := capsys.readouterr().out) and told.count("Passed over") == 1
    assert np.isnan(result.loss).tolist() == [False, True, False, False]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.trained))
    with pytest.raises(NonFiniteError, match="step 3 of 4: loss nan"):
        fitted(tmp_path, calm, poisoned=(1, 2))
    with pytest.raises(NonFiniteError, match="step 2 of 4: loss nan"):
        fitted(tmp_path, step_of(), poisoned=(1,))
    with pytest.raises(NonFiniteError, match="all 1 steps were passed over; nothing of it was saved. Move cycles/"):
        fitted(tmp_path, calm, RATES[:1], poisoned=(0,))


def test_an_average_is_that_of_the_weights_after_every_step(tmp_path):
    after = [fitted(tmp_path, step_of(), RATES[:n]).trained for n in (1, 2, 3)]
    weights = 0.5 ** np.array([3, 2, 1])
    expected = jax.tree.map(lambda *xs: sum(w * x for w, x in zip(weights / weights.sum(), xs)), *after)
    assert_near(fitted(tmp_path, step_of(ema_decay=0.5), RATES[:3]).trained, expected, atol=1e-5)


def test_without_a_step_the_weights_are_what_they_were_with_or_without_an_average(tmp_path):
    for step in (step_of(), step_of(ema_decay=0.5)):
        jax.tree.map(np.testing.assert_array_equal, fitted(tmp_path, step, RATES[:0]).trained, graph_and_weights()[1])


def test_a_paused_training_goes_on_to_the_same_bits(tmp_path):
    step = step_of(ema_decay=0.5)
    straight = fitted(tmp_path, step)
    assert fitted(tmp_path, step, pause=lambda done: done == 2) is None
    resumed = fitted(tmp_path, step)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_rows_are_cut_over_devices_and_change_nothing(tmp_path):
    """In a child with four simulated devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    child = subprocess.run(
        [sys.executable, "-c", f"import tests.raft.test_fit as t; t.losses_on_a_mesh({str(tmp_path)!r})"],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    devices, losses = json.loads(child.stdout.splitlines()[-1])
    assert devices == 4
    np.testing.assert_allclose(losses, fitted(tmp_path, step_of()).loss, rtol=1e-5)


def losses_on_a_mesh(folder):
    import pathlib

    config = read_config(raft_values(raft__batch_size=8, mesh__data=4))
    mesh = mesh_of(config)
    result = fitted(pathlib.Path(folder), step_of(mesh=mesh))
    print(json.dumps([mesh.size, result.loss.tolist()]))


@pytest.mark.parametrize(
    "overrides,message",
    (
        ({"raft__accum_steps": 3}, "accum_steps: 3 micro-batches do not divide batch_size 16"),
        ({"mesh__fsdp": 2}, "fine-tuning keeps weights whole on every device"),
    ),
)
def test_what_cannot_be_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        read_config(raft_values(**overrides))
