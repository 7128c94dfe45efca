"""The jitted step: accumulation, raises, non-finite numbers, and no second compilation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fftlm_jax.checkpoints.contents import averaged_params
from fftlm_jax.curriculum import Answer
from fftlm_jax.data import TrainingWindows
from fftlm_jax.model import build
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.optim import sawtooth_learning_rate
from fftlm_jax.spectral import LowPass
from fftlm_jax.training import run_parts
from fftlm_jax.training.compiler import StepCompiler, StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.step import events, make_train_step
from tests.tiny import tiny
from tests.training.poison import poison_windows

NO_EVENT = events(Answer())
SMALL = {"model__n_layers": 1}  # Compiles fast.


class Bench:
    """A tiny run without its loop. Benches of equal configs share their compiled steps."""

    def __init__(self, **overrides):
        self.config = tiny(**SMALL, **overrides)
        self.tx, self.graph = build_optimizer_of(self.config), graph_of(self.config.model)
        state = first_state(self.config.curriculum.method, self.config.optim.ema_decay)
        self.state = jax.tree.map(jnp.asarray, state)  # Steps donate it.
        model = self.config.model
        data = np.random.default_rng(0).integers(97, 123, 4000).astype(np.uint8)
        self.windows = TrainingWindows(data, model.seq_len, model.chunk, self.config.seed)

    def step_at(self, cutoff):
        return jitted_step(self.config, cutoff)

    def batch(self, step):
        t = self.config.train
        return self.windows.batch(step * t.accum_steps * t.batch_size, t.accum_steps, t.batch_size)

    def logits(self, cutoff):
        return np.asarray(chunk_logits(self.config, cutoff, self.state.params, self.batch(0)[0]))

    def spectra(self):
        """The kernels' cosine spectra and both of their Adam moments."""
        adam = next(
            s for s in jax.tree.leaves(self.state.opt_state, is_leaf=lambda n: hasattr(n, "mu")) if hasattr(s, "mu")
        )
        return [np.asarray(tree["blocks"]["mixer"]["spectrum"]) for tree in (self.state.params, adam.mu, adam.nu)]


@functools.cache
def graph_of(model):
    return build(model)[0]


@functools.cache
def first_state(method, ema_decay):
    """Nothing else that tests change makes it another one."""
    config = tiny(**SMALL, curriculum__method=method, optim__ema_decay=ema_decay)
    tx = build_optimizer_of(config)
    return jax.device_get(jax.jit(lambda: run_parts.first_state(config, tx)[0])())


@functools.cache
def jitted_step(config, cutoff):
    low_pass = low_pass_at(config, cutoff)
    return make_train_step(config, graph_of(config.model), build_optimizer_of(config), low_pass)


@functools.partial(jax.jit, static_argnums=(0, 1))
def chunk_logits(config, cutoff, params, tokens):
    model = nnx.merge(graph_of(config.model), params)
    return model.head.chunk(model(tokens, low_pass_at(config, cutoff)))


@pytest.mark.parametrize(
    "objective,dtype,tolerance,splits",
    (("chunk", "float32", 1e-5, ((1, 4), (2, 2), (4, 1))), ("next_byte", "bfloat16", 2e-2, ((1, 4), (2, 2)))),
)
def test_accumulated_batches_equal_one_large_batch(objective, dtype, tolerance, splits):
    results = []
    for accum_steps, batch_size in splits:
        bench = Bench(objective__name=objective, model__dtype=dtype)
        batch = bench.windows.batch(0, accum_steps, batch_size)
        state, metrics = bench.step_at(4)(bench.state, batch, *NO_EVENT)
        results.append((jax.device_get(state.params), float(metrics.loss), float(metrics.grad_norm)))
    for params, loss, grad_norm in results[1:]:
        assert loss == pytest.approx(results[0][1], rel=tolerance)
        assert grad_norm == pytest.approx(results[0][2], rel=10 * tolerance)
        if dtype == "float32":
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, results[0][0])


def test_it_learns():
    bench = Bench()
    step = bench.step_at(4)
    losses = []
    for i in range(60):
        bench.state, metrics = step(bench.state, bench.batch(i), *NO_EVENT)
        losses.append(float(metrics.next_byte_loss))
    assert losses[0] > 5 and losses[-1] < 3.6, "log(26) = 3.26 is the entropy of these bytes"


def test_masked_coefficients_and_their_moments_stay_exactly_zero_until_their_raise():
    bench = Bench()
    passed = 3  # 4 of 16 bins, 12 taps.
    step = bench.step_at(4)
    for i in range(5):
        bench.state, _ = step(bench.state, bench.batch(i), *NO_EVENT)
        for array in bench.spectra():
            assert (array[..., passed:] == 0).all() and (array[..., :passed] != 0).any()
    step = bench.step_at(8)
    bench.state, _ = step(bench.state, bench.batch(5), *NO_EVENT)
    for array in bench.spectra():
        assert (array[..., 6:] == 0).all() and (array[..., 3:6] != 0).all()


def test_the_models_output_is_unchanged_at_the_moment_of_a_raise():
    bench = Bench()
    step = bench.step_at(4)
    for i in range(3):
        bench.state, _ = step(bench.state, bench.batch(i), *NO_EVENT)
    at_4 = bench.logits(4)
    for cutoff in (8, 17):
        np.testing.assert_array_equal(bench.logits(cutoff), at_4)


def test_negative_control_minimum_phase_jumps_at_a_raise():
    bench = Bench(curriculum__method="minimum_phase", curriculum__transition_bins=2)
    assert np.abs(bench.logits(4) - bench.logits(8)).max() > 1e-3


@pytest.mark.parametrize("poison", (np.nan, np.inf))
def test_a_nonfinite_step_changes_nothing_and_halts(poison):
    bench = Bench()
    step = bench.step_at(4)
    bench.state, _ = step(bench.state, bench.batch(0), *NO_EVENT)
    before = jax.device_get(bench.state)
    before.params["final_norm"]["scale"] = np.where(np.arange(16) == 0, np.float32(poison), 1)
    after, metrics = step(jax.tree.map(jnp.asarray, before), bench.batch(1), *NO_EVENT)
    assert not metrics.finite and after.halted
    after = jax.device_get(after)
    jax.tree.map(np.testing.assert_array_equal, after[:3], before[:3])
    healed = after._replace(params=jax.tree.map(lambda x: np.where(np.isfinite(x), x, np.float32(1)), after.params))
    again, metrics = step(jax.tree.map(jnp.asarray, healed), bench.batch(2), *NO_EVENT)
    assert not metrics.finite, "later steps change nothing either: the host may have sent one before it knew"
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again)[:3], healed[:3])


@pytest.fixture(scope="module")
def skipping():
    """Makes benches that pass over two steps in a row, whose loss byte 255 makes NaN; and their step."""
    make = functools.partial(Bench, train__skip_nonfinite=2)
    bench = make()
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison_windows(monkeypatch)
        step = make_train_step(bench.config, bench.graph, bench.tx, low_pass_at(bench.config, 4))
        step(bench.state, bench.batch(0), *NO_EVENT)  # Traces it.
    return make, step


def test_nonfinite_steps_in_a_row_are_passed_over_up_to_a_limit(skipping):
    make, step = skipping
    bench = make()
    bad = bench.batch(1).copy()
    bad[0, 0, 5] = 255

    def advance(windows, reduce_by=1.0):
        before = jax.device_get(bench.state)
        bench.state, metrics = step(bench.state, windows, *events(Answer(reduce_by=reduce_by)))
        after = jax.device_get(bench.state)
        moved = any(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), before.params, after.params)))
        return moved, bool(metrics.finite), bool(metrics.halted), int(after.step), int(after.skipped)

    assert advance(bench.batch(0)) == (True, True, False, 1, 0)
    assert advance(bad) == (False, False, False, 2, 1)
    assert advance(bad) == (False, False, False, 3, 2)
    assert advance(bench.batch(2)) == (True, True, False, 4, 0), "a sound step begins the count anew"
    lr = float(sawtooth_learning_rate(bench.state.opt_state))
    assert advance(bad, reduce_by=0.5) == (False, False, False, 5, 1)
    assert advance(bad)[-1] == 2 and advance(bad)[1:] == (False, True, 6, 2)
    assert advance(bench.batch(3))[:3] == (False, False, True), "halted is halted"
    reduced = float(sawtooth_learning_rate(bench.state.opt_state))
    assert reduced < 0.6 * lr, "an event at a step that is passed over is not lost"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(bench.state)))


def test_allowing_skips_changes_nothing_for_sound_steps(skipping):
    states = []
    for bench, step in ((Bench(), Bench().step_at(4)), (skipping[0](), skipping[1])):
        for i in range(3):
            bench.state, _ = step(bench.state, bench.batch(i), *NO_EVENT)
        states.append(jax.device_get(bench.state))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)  # XLA fuses the two differently.
    jax.tree.map(close, *states)


def test_a_nonfinite_update_of_finite_gradients_is_caught():
    """A learning rate beyond the largest float: loss and gradient are sound, the update is not."""
    bench = Bench()
    after, metrics = bench.step_at(4)(bench.state, bench.batch(0), *events(Answer(reduce_by=math.inf)))
    assert np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm)
    assert not metrics.finite and after.halted and after.step == 0


def test_dropout_repeats_with_the_step_and_differs_between_steps():
    losses = []
    for step_number in (0, 0, 1):
        bench = Bench(model__dropout=0.3)
        state = bench.state._replace(step=jnp.int32(step_number))
        losses.append(float(bench.step_at(4)(state, bench.batch(0), *NO_EVENT)[1].loss))
    assert losses[0] == losses[1] != losses[2]


def test_the_size_of_updates_is_reported_by_coefficient():
    """That of what was really added, and 0 above the cutoff."""
    bench = Bench()
    before = bench.spectra()[0]
    bench.state, metrics = bench.step_at(4)(bench.state, bench.batch(0), *NO_EVENT)
    moved = bench.spectra()[0] - before
    np.testing.assert_allclose(metrics.spectrum_update_K, np.mean(moved**2, axis=(0, 1)), rtol=1e-3)
    assert np.flatnonzero(metrics.spectrum_update_K).tolist() == [0, 1, 2], "a quarter of 12 coefficients"


def test_a_coefficient_that_opens_late_moves_twice_as_far_at_first():
    """Its moments are new, its bias correction is that of the optimizer's age: what the record is there to show."""
    bench = Bench()
    step = bench.step_at(4)
    for i in range(120):
        bench.state, _ = step(bench.state, bench.batch(i), *NO_EVENT)
    _, metrics = bench.step_at(8)(bench.state, bench.batch(120), *NO_EVENT)
    opened, older = metrics.spectrum_update_K[3:6].mean(), metrics.spectrum_update_K[:3].mean()
    assert (opened / older) ** 0.5 > 1.4


def test_events_reach_the_learning_rate_and_never_recompile():
    bench = Bench()
    step = bench.step_at(4)
    rates = []
    compiled = step._cache_size()
    for i, answer in enumerate((Answer(), Answer(reduce_by=0.5), Answer(restart=True), Answer(pulse=True))):
        bench.state, _ = step(bench.state, bench.batch(i), *events(answer))
        rates.append(float(sawtooth_learning_rate(bench.state.opt_state)))
    assert rates == pytest.approx([1e-2, 0.5e-2 * rates_ratio(1), 0.5e-2, 0.5e-2], rel=1e-4)
    assert step._cache_size() == max(compiled, 1)


def rates_ratio(step: int) -> float:
    """The tiny config's tooth: peak 1, floor 0.1, 20 steps."""
    return 0.1 + 0.9 * (1 + np.cos(np.pi * step / 20)) / 2


def compiler_of(bench: Bench, log: list, real: StepVariant) -> StepCompiler:
    """A compiler of one real step; the others, which nobody runs, do nothing."""

    def lower(variant):
        log.append((variant.low_pass.cutoff, variant.micro_batches))
        if variant != real:
            return jax.jit(lambda: 0).lower()
        return bench.step_at(4).lower(*run_parts.step_arguments(bench.config, bench.tx, variant.micro_batches))

    return StepCompiler(lower, bench.config.model.kernel_len)


@pytest.mark.timeout(120)
def test_each_mask_and_batch_is_compiled_once_and_shared_by_equal_masks():
    bench, log = Bench(), []
    variants = [StepVariant(low_pass_at(bench.config, c), 2) for c in (4, 8, 16, 17)]
    with compiler_of(bench, log, variants[0]) as compiler:
        compiler.ahead(variants[1])
        first = compiler.get(variants[0])
        assert compiler.get(variants[0]) is first and compiler.get(variants[1]) is not first
        assert compiler.get(variants[2]) is compiler.get(variants[3]), "16 of 17 bins pass every coefficient"
        assert compiler.get(variants[0]._replace(micro_batches=1)) is not first
        assert sorted(log) == [(4, 1), (4, 2), (8, 2), (16, 2)] and compiler.compiled == 4
        compiled_state, compiled_metrics = first.run(bench.state, bench.batch(0), *NO_EVENT)
    other = Bench()
    state, metrics = other.step_at(4)(other.state, other.batch(0), *NO_EVENT)
    assert float(metrics.loss) == float(compiled_metrics.loss)
    jax.tree.map(np.testing.assert_array_equal, state.params, compiled_state.params)


@pytest.mark.timeout(60)
def test_a_failed_compile_is_raised_where_the_step_is_asked_for():
    def broken(variant):
        raise RuntimeError("no such mask")

    variant = StepVariant(LowPass(1, 17), 1)
    with StepCompiler(broken, kernel_len=12) as compiler:
        compiler.ahead(variant)
        with pytest.raises(RuntimeError, match="no such mask"):
            compiler.get(variant)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("rehearse", "limit", "runs"), [(True, 10**6, 1), (True, 10, 0), (False, 10**6, 0)])
def test_a_step_is_rehearsed_once_on_zeros_where_it_is_small(rehearse, limit, runs, monkeypatch):
    monkeypatch.setattr("fftlm_jax.training.compiler._REHEARSED_BYTES", limit)
    seen = []

    def lower(variant):
        def step(x, *, scale):
            jax.debug.callback(lambda *values: seen.append(values), x, scale)
            return x * scale

        return jax.jit(step, donate_argnums=0).lower(jnp.ones((4, 8)), scale=jnp.ones(()))

    with StepCompiler(lower, kernel_len=12, rehearse=rehearse) as compiler:
        compiled = compiler.get(StepVariant(LowPass(1, 17), 1))
        jax.effects_barrier()
        assert len(seen) == runs and all(np.all(x == 0) and scale == 0 for x, scale in seen)
        np.testing.assert_array_equal(compiled.run(jnp.ones((4, 8)), scale=jnp.full((), 3.0)), np.full((4, 8), 3.0))


def test_the_average_of_the_weights_is_a_mean_from_the_first_step_on():
    """Shares of the steps fall by the decay and add up to 1."""
    bench, seen = Bench(optim__ema_decay=0.9), []
    for i in range(3):
        bench.state, _ = bench.step_at(4)(bench.state, bench.batch(i), *NO_EVENT)
        seen.append(jax.device_get(bench.state.params))
    shares = 0.9 ** np.arange(2, -1, -1) / (0.81 + 0.9 + 1)
    mean = jax.tree.map(lambda *steps: sum(share * step for share, step in zip(shares, steps)), *seen)
    average = jax.jit(lambda ema: averaged_params(bench.config.optim.ema_decay, ema))(bench.state.ema)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), average, mean)
