"""Every byte of a small checkpoint changed in turn: it is found, or what comes back is exactly what was saved."""

import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fftlm_jax.checkpoints import saved_step
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.checkpoints.saved_step import MANIFEST, manifest_fault

HOST = {"controller": {"cutoff": 4, "losses": [0.1, 1 / 3], "raises": []}}
SMALL, SAMPLES, ENDS = 400, 150, 16  # Bytes of a file of which each is changed; of larger ones, how many are.


def state_of(step):
    rng = np.random.default_rng(step)
    return {"a": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), "b": jnp.arange(3.0, dtype=jnp.bfloat16) + step}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of checkpoints with the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("flips") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {**HOST, "step": step}, bpb=2.5)
    checkpoints.close()
    return folder


def is_exact(restored):
    expected = state_of(restored.step)
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), restored.arrays, expected)
    return all(jax.tree.leaves(same)) and restored.host == {**HOST, "step": restored.step}


def restore(folder):
    return Checkpoints(folder).restore(jax.eval_shape(lambda: state_of(1)))


def places(size):
    if size <= SMALL:
        return range(size)
    within = random.Random(size).sample(range(ENDS, size - ENDS), min(SAMPLES, size - 2 * ENDS))
    return [*range(ENDS), *within, *range(size - ENDS, size)]


def files_of(step):
    return sorted(file for file in step.rglob("*") if file.is_file())


def test_every_changed_byte_is_found(saved):
    """By the manifest alone, which is asked before anything is restored: none passes, so that no restore is needed."""
    step, changed = saved / "2", 0
    assert manifest_fault(step) is None and is_exact(restore(saved)) and restore(saved).step == 2
    for file in files_of(step):
        whole = file.read_bytes()
        rng = random.Random(0)
        with file.open("r+b", buffering=0) as handle:
            for at in places(len(whole)):
                os.pwrite(handle.fileno(), bytes([whole[at] ^ rng.randrange(1, 256)]), at)
                changed += 1
                if manifest_fault(step) is None:
                    restored = restore(saved)
                    assert is_exact(restored) and restored.step == 2, (file, at)
                os.pwrite(handle.fileno(), whole[at : at + 1], at)
    assert changed > 2500 and manifest_fault(step) is None and is_exact(restore(saved))


def test_the_step_before_takes_the_place_of_every_damaged_one(saved, tmp_path):
    names = [file.relative_to(saved) for file in files_of(saved / "2") if file.stat().st_size]
    assert len(names) > 8
    for i, name in enumerate(names):
        folder = tmp_path / str(i) / "checkpoints"
        shutil.copytree(saved, folder)
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1 << i % 8
        (folder / name).write_bytes(content)
        restored = restore(folder)
        assert restored.step == 1 and is_exact(restored), name
        assert (folder.parent / "quarantine" / "2" / MANIFEST).exists()


def test_without_the_manifest_wrong_weights_would_come_back(tmp_path, monkeypatch):
    """So that the tests above can fail: the store itself does not notice every changed byte."""
    numbers = {"a": jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 1 << 16, dtype=np.uint32))}
    Checkpoints(tmp_path / "checkpoints").save(2, numbers, HOST)
    raw = np.asarray(numbers["a"]).tobytes()[4000:4040]
    (file,) = [f for f in files_of(tmp_path / "checkpoints" / "2") if raw in f.read_bytes()]
    content = bytearray(file.read_bytes())
    content[content.index(raw)] ^= 4
    file.write_bytes(content)
    assert "does not match its manifest" in manifest_fault(tmp_path / "checkpoints" / "2")
    monkeypatch.setattr(saved_step, "manifest_fault", lambda directory: None)
    restored = Checkpoints(tmp_path / "checkpoints").restore(jax.eval_shape(lambda: numbers))
    assert (np.asarray(restored.arrays["a"]) != np.asarray(numbers["a"])).sum() == 1
