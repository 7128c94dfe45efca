"""Suite `raise` of `experiments.bench`: what a raise costs in time, by the ways there are to change the cutoff."""

import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from configs import small
from experiments.bench_step import training_step, windows_of
from experiments.interleaved import Row, compare
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Answer, Controller
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.model import build, init_params, score
from fftlm_jax.model.language_model import evaluation_low_pass, low_pass_at
from fftlm_jax.model.loss import objective_loss
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.spectral import mask_spectrum
from fftlm_jax.training import run
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.step import events

_STEPS, _RAISE_AT, _AROUND = 120, 60, 10
_LAST_RAISE = ((0, 0.25), (_RAISE_AT // 10, "full"))
# Of the first raise, with another rung behind it, whose step is compiled while training goes on.
_WITH_A_RUNG_BEHIND = ((0, 0.25), (_RAISE_AT // 10, 0.5), (_STEPS // 10 + 1, "full"))
_ELSEWHERE = (30, 90, 110)  # Middles of as many steps without a raise.


def bench_raise(rounds: int) -> list[Row]:
    """Real runs with one raise, compiled ahead and not; and the step with a traced cutoff against the static one."""
    rows = []
    for name, schedule, is_ahead in (
        ("compiled ahead", _LAST_RAISE, True),
        ("compiled ahead, another rung behind it", _WITH_A_RUNG_BEHIND, True),
        ("compiled when due", _LAST_RAISE, False),
    ):
        times = [_step_times(schedule, is_ahead) for _ in range(rounds)]
        rows.append(_slowest(f"around a raise, {name}", times, (_RAISE_AT,)))
        # What such a ratio comes to by the machine's noise alone.
        rows.append(_slowest("far from it, same runs", times, _ELSEWHERE))
    config = read_config(_raises(_LAST_RAISE), with_data=False)
    sides = {"static": training_step(config), "traced": _traced_step(config)}
    return [*rows, compare("training step of configs/small.py, cutoff static or traced", sides, rounds)]


def _raises(schedule: tuple[tuple[int, float | str], ...]) -> Any:
    values = small.get_config()
    values.curriculum.update(rule="schedule", schedule=schedule)
    values.train.update(steps_per_epoch=10, epochs=schedule[-1][0] + 1, log_every=1000)
    values.train.epochs = max(values.train.epochs, _STEPS // 10)
    values.eval.update(every=10 * _STEPS, before_raise=False, max_bytes=4096)
    values.checkpoint.every = 10 * _STEPS
    values.sample.bytes = 0
    return values


def _slowest(where: str, times_by_run: Sequence[Sequence[float]], middles: Sequence[int]) -> Row:
    """The slowest steps near some places over the median of all steps far from the raise."""
    ratios = []
    for times in times_by_run:
        others = times[_AROUND : _RAISE_AT - _AROUND] + times[_RAISE_AT + _AROUND :]  # The first ones warm up.
        slowest = [max(times[middle - _AROUND : middle + _AROUND]) for middle in middles]
        ratios += [value / statistics.median(others) for value in slowest]
    return {
        "case": f"slowest of {2 * _AROUND} steps over the median of the others, {where}",
        "median": round(statistics.median(ratios), 3),
        "range": f"{min(ratios):.2f}-{max(ratios):.2f}",
        "windows": len(ratios),
    }


def _step_times(schedule: tuple[tuple[int, float | str], ...], is_ahead: bool) -> list[float]:
    """Seconds from step to step, as users wait for them: a compilation counts into the step that it holds up."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Controller, "upcoming_cutoff", Controller.upcoming_cutoff if is_ahead else lambda self: None),
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            run(_raises(schedule), Path(folder, "run"))
        records = read_metrics(Path(folder, "run", "metrics.jsonl"))
    waited = {r["step"]: r["waited"] for r in records if r.get("event") == "compiled"}
    size = small.get_config().train.batch_size * small.get_config().model.seq_len
    return [
        size / record["bytes_per_second"] + waited.get(record["step"] - 1, 0.0)
        for record in records
        if record["kind"] == "train" and record["step"] <= _STEPS
    ]


def _traced_step(config: Config) -> Callable[[], jax.Array]:
    """The same step with the mask of coefficients as an argument, so that a raise compiles nothing."""
    tx, (graph, _) = build_optimizer_of(config), build(config.model)
    everything = evaluation_low_pass(config, 1)
    start = low_pass_at(config, build_controller(config).cutoff)

    def loss(params: Any, mask_K: jax.Array, windows_BW: jax.Array) -> jax.Array:
        mixer = {**params["blocks"]["mixer"], "spectrum": params["blocks"]["mixer"]["spectrum"] * mask_K}
        masked = {**params, "blocks": {**params["blocks"], "mixer": mixer}}
        scores = score(
            graph, masked, windows_BW, everything, chunk=config.model.chunk, with_chunk=config.objective.has_chunks
        )
        return objective_loss(config, scores)[0]

    @jax.jit
    def step(params: Any, opt_state: Any, mask_K: jax.Array, windows_BW: jax.Array, *event: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, mask_K, windows_BW)
        restart, pulse, reduce_by = event
        updates, opt_state = tx.update(grads, opt_state, params, restart=restart, pulse=pulse, reduce_by=reduce_by)
        return optax.apply_updates(params, updates), opt_state, value

    params = init_params(config.model, config.seed)
    opt_state, windows = tx.init(params), windows_of(config)[0]
    mask = mask_spectrum(jnp.ones((1, config.model.kernel_len)), start)[0]

    def one_step() -> jax.Array:
        nonlocal params, opt_state
        params, opt_state, value = step(params, opt_state, mask, windows, *events(Answer()))
        return value

    return one_step
