"""Row 23: what version 0.1 saved is read to the same bits; a run that cannot be read says what wrote it.

No old checkpoint is kept here: the repository holds no binaries. What an old one consists of is written anew, and the
hash of its state, taken at version 0.1, must still come out.
"""

import json

import jax
import jax.numpy as jnp
import pytest

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.checkpoints.saved_step import manifest_fault
from fftlm_jax.checkpoints.verification import state_hash
from fftlm_jax.config.reading import to_dict
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.training import run_parts
from fftlm_jax.training.optimizer import build_optimizer_of
from tests.tiny import tiny

HASH = "24af50502fcb2cf617746db6add6e5073bf5ea3abcfff59ac2dce560c08d8b1e"
SMALL = {"model__d_model": 4, "model__n_layers": 1, "model__conv_heads": 2, "model__chunk": 2}


def state_of_0_1():
    """Arrays of a tiny model and its optimizer whose values are their own places."""
    config = tiny(**SMALL)
    leaves, structure = jax.tree.flatten(run_parts.abstract_state(config, build_optimizer_of(config)))
    values = [jnp.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, values)


def test_a_step_as_the_first_version_saved_it_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state_of_0_1(), {"controller": {"cutoff": 17}})
    checkpoints.close()
    files = json.loads((tmp_path / "3" / "manifest.json").read_text())["files"]
    only_files = {"files": {name: {key: entry[key] for key in ("bytes", "sha256")} for name, entry in files.items()}}
    (tmp_path / "3" / "manifest.json").write_text(json.dumps(only_files, indent=2) + "\n")
    assert manifest_fault(tmp_path / "3") is None
    config = tiny(**SMALL)
    restored = Checkpoints(tmp_path).restore(run_parts.abstract_state(config, build_optimizer_of(config)))
    assert restored.step == 3 and state_hash(restored.arrays, restored.host["controller"]) == HASH


def test_a_run_that_cannot_be_read_says_what_wrote_it(tmp_path):
    values = to_dict(tiny())
    del values["optim"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "env.json").write_text('{"fftlm_jax": "0.0.7"}')
    with pytest.raises(CheckpointError, match="lacks optim.*was written by fftlm_jax 0.0.7; this is 0"):
        saved_run.open_config(tmp_path)
