"""Curvature, limits and cosines on functions whose answers are known, and the experiment on a tiny run."""

import ast
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from configs import tiny as tiny_config
from experiments import landscape as around
from experiments import sharpness, sharpness_bench
from experiments.lanczos import top_eigenpair
from experiments.landscape import Landscape, adam_scale, largest_stable, limit_of_adam, top_curvature
from experiments.sharpness_bench import CUTOFFS, FACTORS, MEASURES, View
from fftlm_jax.config.reading import read_config
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.model.parameters import label_params
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.training import run
from tests.tiny import tiny_values

CONSTANT = {
    "objective__name": "next_byte", "model__chunk": 1, "model__n_layers": 1, "model__d_model": 8, "model__seq_len": 16,
    "model__kernel_len": 8, "model__projections": False, "curriculum__ladder": ("full",),
    "lr__stages": (("rest", 1.0, 1.0),), "sample__bytes": 0,
    "train__accum_steps": 1, "train__steps_per_epoch": 6, "train__epochs": 1, "eval__every": 99,
    "checkpoint__every": 99,
}  # fmt: skip
CONFIG_FILE = f"""
from tests.tiny import tiny_values

def get_config():
    return tiny_values(**{CONSTANT!r})
"""


def symmetric(size, seed):
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    return matrix + matrix.T


def random(size):
    return np.random.default_rng(9).normal(size=size)


@pytest.mark.parametrize("size", (1, 2, 40))
def test_lanczos_finds_the_largest_eigenvalue_of_a_dense_matrix(size):
    for seed in range(3):
        matrix = symmetric(size, seed)
        found = top_eigenpair(lambda q: matrix @ q, random(size), tolerance=1e-10)
        assert found.value == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-8)
        assert np.linalg.norm(found.vector) == pytest.approx(1)
        assert np.linalg.norm(matrix @ found.vector - found.value * found.vector) < 1e-8 * np.abs(matrix).max() * size


def test_lanczos_takes_the_largest_and_not_the_longest_and_says_how_close_it_is():
    matrix = np.diag([-9.0, 1.0, 2.0, 3.0] + [0.5] * 60)
    assert top_eigenpair(lambda q: matrix @ q, random(64)).value == pytest.approx(3.0, rel=1e-3)
    flat = np.diag(np.linspace(0, 1, 400))
    early = top_eigenpair(lambda q: flat @ q, random(400), most_products=10, tolerance=0.0)
    assert early.products == 10 and abs(early.value - 1.0) <= early.error and early.value <= 1.0


def test_lanczos_stops_where_the_space_is_closed():
    identity = top_eigenpair(lambda q: 2.0 * q, random(50))
    assert identity.products == 1 and identity.value == pytest.approx(2.0)
    assert top_eigenpair(lambda q: 0.0 * q, random(50)).value == 0.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a trial of the experiment: six steps at the lowest cutoff, small batches, landscapes made once."""
    path = tmp_path_factory.mktemp("sharpness")
    (path / "config.py").write_text(CONFIG_FILE)
    trial = sharpness.trials(1)[0]
    assert trial.arm == "1/4" and trial.overrides[1] == "curriculum.schedule=((0,0.25),)"
    run(tiny_values(**CONSTANT, curriculum__rule="schedule", curriculum__schedule=((0, 0.25),)), path / trial.name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sharpness_bench, "_FIXED_WINDOWS", 8)
        monkeypatch.setattr(sharpness_bench, "Landscape", functools.cache(Landscape))
        yield path


@pytest.fixture(scope="module")
def trained(folder):
    """Landscapes at the lowest and the full cutoff, a state six steps into training at the former, and the text."""
    config, state = sharpness_bench.load_state(folder / "1_4-seed0")
    low, full = (sharpness_bench.Landscape(config, low_pass_at(config, cutoff)) for cutoff in (2, 9))
    return low, full, jax.tree.map(jnp.asarray, state), sharpness_bench.Bench(config)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def is_masked(params):
    """Flat mask of the kernels' coefficients above the lowest cutoff, which lets 2 of 8 pass."""
    mark = lambda group, leaf: np.broadcast_to((group == "convolution") & (np.arange(leaf.shape[-1]) >= 2), leaf.shape)
    return flat(jax.tree.map(mark, label_params(params), params))


def test_products_are_those_of_the_dense_hessian_and_masked_coefficients_have_none(trained):
    low, _, state, bench = trained
    # Nearly all of a tiny model is embedding and head: held fixed, they leave a dense matrix that fits.
    held = {name: part for name, part in state.params.items() if name in ("embed", "head")}
    free = {name: part for name, part in state.params.items() if name not in held}
    windows = bench.fixed[0]
    free_F, unravel = ravel_pytree(free)
    dense = jax.jit(jax.jacrev(jax.grad(lambda p: low.loss({**held, **unravel(p)}, windows))))(free_F)
    dense = np.asarray(dense, np.float64)
    masked = is_masked(free)
    assert masked.sum() == 4 * 6 and not dense[masked].any() and dense[~masked].any(axis=1).mean() > 0.9

    vector = np.random.default_rng(0).normal(size=free_F.size).astype(np.float32)
    direction = {**jax.tree.map(np.zeros_like, held), **unravel(jnp.asarray(vector))}
    image = ravel_pytree(state.params)[1](low.product(state.params, windows, direction))
    assert flat({name: image[name] for name in free}) == pytest.approx(dense @ vector, abs=1e-4)
    assert not np.asarray(low.gradient(state.params, windows))[is_masked(state.params)].any()


def test_the_cutoff_can_only_add_curvature_and_its_eigenvector_stays_on_free_parameters(trained):
    """At a raise the Hessian of before is a block of the one after: its top eigenvalue cannot fall (Cauchy)."""
    low, full, state, bench = trained
    windows = bench.fixed[0]
    for scale in (None, adam_scale(low, state, windows)):
        before = top_curvature(low, state.params, windows, scale)
        assert not before.vector[is_masked(state.params)].any()
        assert before.error < 0.011 * before.value
        root = 1.0 if scale is None else scale**-0.5
        direction = ravel_pytree(state.params)[1](jnp.asarray(root * before.vector, jnp.float32))
        image = root * np.asarray(low.product(state.params, windows, direction), np.float64)
        assert np.linalg.norm(image - before.value * before.vector) == pytest.approx(before.error, rel=0.01)
        assert top_curvature(full, state.params, windows, scale).value > 0.999 * before.value
    shares = [around.share_of(before.vector, state.params, g) for g in {*jax.tree.leaves(label_params(state.params))}]
    assert sum(shares) == pytest.approx(1)


def test_the_preconditioner_is_what_adam_divides_by(trained):
    _, full, state, bench = trained
    optim = full.config.optim
    (adam,) = around.states_of(state.opt_state, optax.ScaleByAdamState)
    gradient = full.gradient(state.params, bench.fixed[0])
    adam = adam._replace(mu=flat(adam.mu), nu=flat(adam.nu))
    updates, after = optax.scale_by_adam(optim.b1, optim.b2, optim.eps).update(gradient, adam)
    moment = after.mu / (1 - optim.b1 ** int(after.count))
    scale = adam_scale(full, state, bench.fixed[0])
    assert moment / scale == pytest.approx(np.asarray(updates), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("b1", (0.0, 0.5, 0.9))
def test_the_limit_of_averaged_momentum_on_a_quadratic(b1):
    for part, ends_small in ((0.97, True), (1.03, False)):
        w, m = 1.0, 0.0
        for _ in range(1500):
            m = b1 * m + (1 - b1) * 7.0 * w
            w -= part * limit_of_adam(7.0, b1) * m
        assert (abs(w) < 1) is ends_small
    assert limit_of_adam(38.0, 0.9) == pytest.approx(1.0) and limit_of_adam(-1.0, 0.9) == math.inf


@pytest.mark.parametrize(
    "case,changes,allowed,expected",
    (
        ("halfway between, in logarithms", [-1.0, -1.0, 1.0], 0.0, 2 * 2**0.5),
        ("at the allowed loss", [-1.0, 0.1, 3.0], 0.1, 2.0),
        ("none fails: a bound", [-1.0, -1.0, -1.0], 0.0, 4.0),
        ("all fail: a bound", [1.0, 2.0, 3.0], 0.0, 1.0),
        ("up to the first that fails", [-1.0, 1.0, -1.0], 0.0, 2**0.5),
        ("not beyond the last finite one", [-1.0, -1.0, math.inf], 0.0, 2.0),
    ),
)
def test_the_largest_stable_rate(case, changes, allowed, expected):
    assert largest_stable([1.0, 2.0, 4.0], changes, allowed) == pytest.approx(expected)


def test_training_on_leaves_the_state_as_it_was(trained):
    low, _, state, bench = trained
    options = (bench.orders[1], bench.judge)
    changes = around.loss_changes(low, state, *options, factors=(1.0, 1.0, 1e30), steps=3)
    assert changes[0] == changes[1] and math.isfinite(changes[0]) and changes[2] == math.inf
    cosines, later = around.gradient_cosines(low, state, *options, steps=4)
    assert [len(values) for values in cosines] == [3, 3, 2] and int(later.step) == int(state.step) + 4
    assert all(-1 <= value <= 1 for values in cosines for value in values)
    assert min(cosines.fixed) > 0.5, "small steps hardly turn the gradient of one batch"


def test_cosines_of_an_oscillation_are_minus_one():
    rows = np.array([[1.0, 0.0], [-2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    assert around.cosines_of(rows) == pytest.approx([-1.0, -1.0, 0.0])


def made_up(slope, **noise):
    """Views of five seeds at every cutoff; a measure is exp(slope * octave) times the seed's own level."""
    views = []
    for seed in range(5):
        for octave, cutoff in enumerate(CUTOFFS):
            level = math.exp(slope * octave) * (1 + 0.1 * seed)
            values = {name: [level, level] for name in MEASURES}
            changes = [[0.1 * octave + f for f in FACTORS]] * 2
            views.append(View(cutoff, cutoff, seed, values, changes))
    return views


def test_the_table_judges_the_claims_on_the_same_seeds():
    text = sharpness.tables(made_up(math.log(2)))
    rows = {line.split(" | ")[0]: line for line in text.split("### raised")[0].splitlines()}
    assert (
        "x 4 (4 to 4)" in rows["| top eigenvalue of the Hessian"]
        and "as claimed" in rows["| top eigenvalue of the Hessian"]
    )
    assert rows["| largest LR not worse after 30 steps"].endswith("the opposite |")
    assert "### cut" in text and text.count("| top eigenvalue of the Hessian |") == 1, "the others lack cutoffs"
    flat = sharpness.tables(made_up(0.0))
    assert "as claimed" not in flat and "not resolved" in flat


def test_a_run_is_measured_at_every_cutoff_once_and_reported(folder, monkeypatch, capsys):
    monkeypatch.setattr(sharpness_bench, "TRIAL_STEPS", 2)
    monkeypatch.setattr(sharpness_bench, "COSINE_STEPS", 3)
    monkeypatch.setattr(sharpness_bench, "FACTORS", (1.0, 4.0))
    options = [f"--out={folder}", f"--config={folder / 'config.py'}", "--seeds=1"]
    assert sharpness.main([*options, "--index=0"]) == 0
    file = folder / "1_4-seed0.landscape.json"
    found = json.loads(file.read_text())
    assert [v["viewed"] for v in found["views"]] == list(CUTOFFS) and found["lr"] == [1e-2, 4e-2]
    assert all(set(v["values"]) == set(MEASURES) and len(v["loss_changes"]) == 3 for v in found["views"])
    written = file.stat().st_mtime_ns
    assert sharpness.main([*options, "--index=0"]) == 0 and file.stat().st_mtime_ns == written
    assert sharpness.main([*options, "--report"]) == 1
    report = (folder / "REPORT.md").read_text()
    assert "| top eigenvalue of the Hessian |" in report.split("### raised")[1] and "full-seed0: not run" in report
    assert (folder / "sharpness.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_it_cannot_measure_are_refused(folder, tmp_path):
    shutil.copytree(folder / "1_4-seed0", tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    values = json.loads(file.read_text())
    for section, key, value in (("lr", "stages", [["rest", 1.0, 0.1]]), ("optim", "name", "muon")):
        file.write_text(json.dumps({**values, section: {**values[section], key: value}}))
        with pytest.raises(UsageError, match="needs optim.name 'adamw' and lr.stages"):
            sharpness_bench.load_state(tmp_path / "run")


@pytest.mark.parametrize("trial", sharpness.trials(1), ids=lambda trial: trial.arm)
def test_every_arm_is_a_valid_config_that_stays_at_its_cutoff(trial):
    values = tiny_config.get_config()
    (rule, schedule) = (override.partition("=")[2] for override in trial.overrides)
    values.curriculum.update(rule=rule, schedule=ast.literal_eval(schedule))
    config = read_config(values)
    controller = build_controller(config)
    assert controller.cutoff == {"1/4": 16, "1/2": 32, "full": 65}[trial.arm] and controller.upcoming_cutoff() is None
