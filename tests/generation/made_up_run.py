"""Run directories as training would leave them, written without training: nothing is compiled for them."""

import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import optax

from fftlm_jax.checkpoints.contents import TrainState
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.config.cutoff import freq_bins
from fftlm_jax.config.reading import read_config, to_dict
from fftlm_jax.config.schema import Config
from fftlm_jax.data.corpus import load_run_corpus
from tests.model.lively import graph_and_params
from tests.tiny import tiny_values


def make_run(folder: pathlib.Path, **overrides: Any) -> pathlib.Path:
    """Writes a chunk run that sees 8 bytes, with steps 7 (the best) and 8, and an average of its weights.

    Returns its workdir, `folder / "private_run"`.
    """
    text = np.random.default_rng(0).choice(np.frombuffer(b"abcd efgh\n", np.uint8), 6000)
    (folder / "private_corpus.txt").write_bytes(text.tobytes())
    values = tiny_values(
        model__n_layers=1,
        model__kernel_len=8,
        curriculum__rule="none",
        optim__ema_decay=0.5,
        data__path=str(folder / "private_corpus.txt"),
        **overrides,
    )
    config = read_config(values)
    workdir = folder / "private_run"
    workdir.mkdir()
    RunDirectory(workdir).write_config(to_dict(config))
    checkpoints = Checkpoints(workdir / "checkpoints")
    for step, bpb in ((7, 2.0), (8, 3.0)):
        checkpoints.save(step, _state(config, step), _host(config), bpb)
    checkpoints.close()
    return workdir


def _state(config: Config, step: int) -> TrainState:
    _, params = graph_and_params(config.model)
    at_step = jax.tree.map(lambda leaf: leaf * np.float32(1 + step / 100), params)
    average = optax.EmaState(np.int32(step), jax.tree.map(lambda leaf: leaf * np.float32(0.5), params))
    return TrainState(at_step, {"count": np.int32(step)}, average, np.int32(step), np.int32(0), np.bool_(False))


def _host(config: Config) -> dict[str, Any]:
    return {
        "controller": {"cutoff": freq_bins(config.model.seq_len)},
        "corpus": load_run_corpus(config).fingerprint,
    }


def copy_with(workdir: pathlib.Path, copy: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A copy of a run as if other settings had made it; `changes` are dotted keys with `__` for the dot."""
    shutil.copytree(workdir, copy)
    values = json.loads((copy / "config.json").read_text())
    for dotted, value in changes.items():
        section, _, key = dotted.rpartition("__")
        values[section][key] = value
    (copy / "config.json").write_text(json.dumps(values))
    return copy
