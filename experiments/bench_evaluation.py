"""Suite `evaluation` of `experiments.bench`: what a run pays for an evaluation late and early in its life."""

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs import quickstart
from experiments.interleaved import Row, compare
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config
from fftlm_jax.recording.metrics import sample_entry
from fftlm_jax.training import run_parts
from fftlm_jax.training.recorder import Recorder

_STEPS = (1_000, 200_000)
_SCORES = {"bpb": 2.0, "loss": 1.4, "bpb_by_word_place": {"word_first": 3.0, "word_inner": 1.5, "outside": 2.0}}


def bench_evaluation(rounds: int) -> list[Row]:
    """Recording an evaluation (log, doctor, picture) after so many recorded steps; alone, and with quickstart's scores.

    The records are made up: a falling loss with noise, a learning rate, a raise at a third of the run, an evaluation
    with a sample every thousand steps.
    """
    values = quickstart.get_config()
    values.train.steps_per_epoch, values.train.epochs = 1_000, 201
    config = read_config(values)
    with tempfile.TemporaryDirectory() as folder:
        parts = run_parts.build_run(config, RunDirectory(Path(folder) / "none"))
        state = run_parts.initial_run_state(parts)
        recorders = {f"{steps:,} steps": _recorder(config, Path(folder) / str(steps), steps) for steps in _STEPS}
        alone = {name: _evaluation(recorder) for name, recorder in recorders.items()}
        scored = {name: _after(lambda: parts.held_out.scores(state.arrays, state.controller.cutoff), record)
                  for name, record in alone.items()}  # fmt: skip
        rows = [
            compare("what is recorded of an evaluation", alone, rounds),
            compare("an evaluation of quickstart's model, recorded", scored, rounds),
        ]
        for recorder in recorders.values():
            recorder.close()
    return rows


def _evaluation(recorder: Recorder) -> Callable[[], None]:
    sample = bytes(random.Random(0).choices(range(97, 123), k=128))
    return lambda: recorder.evaluated(recorder.first_step, _SCORES, 64, 1.0, sample)


def _after(first: Callable[[], Any], then: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        then()

    return both


def _recorder(config: Config, root: Path, steps: int) -> Recorder:
    """A recorder that goes on after so many steps."""
    directory, draw = RunDirectory(root), random.Random(steps)
    root.mkdir()
    with directory.metrics.open("w") as metrics, directory.samples.open("w") as samples:
        for step in range(1, steps + 1):
            loss = 1.2 + 4 / step**0.3 + draw.gauss(0, 0.05)
            cutoff = 64 if 3 * step > steps else 32
            numbers = {"loss": loss, "lr": 1e-3 * draw.random(), "cutoff": cutoff, "grad_norm": draw.expovariate(2)}
            record = {"kind": "train", "step": step, "epoch": step // 1000, **numbers}
            metrics.write(json.dumps(record | {"next_byte_loss": loss, "chunk_loss": loss + 2}) + "\n")
            if step % 1000 == 0:
                metrics.write(json.dumps({"kind": "eval", "step": step, **_SCORES}) + "\n")
                text = "".join(draw.choices("abcdefgh (),.", k=128))
                samples.write(sample_entry(step, cutoff, 2.0, text))
            if step == steps // 3:
                event = {"event": "cutoff_raised", "from": 32, "to": 64, "improvement": 0.001}
                metrics.write(json.dumps({"kind": "event", "step": step, **event}) + "\n")
    sizes = (directory.metrics.stat().st_size, directory.samples.stat().st_size)
    return Recorder(config, directory, sizes, steps)
