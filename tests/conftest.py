"""Settings of the whole suite: CPU, and one compilation cache for all tests and their child processes."""

import os
import pathlib
import shutil
import sys
import tempfile

import pytest

CACHE = tempfile.mkdtemp(prefix="fftlm_jax_tests_")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation. Child processes of main.py run with its own flags (see tests/tiny.py).
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Runs draw their picture at every evaluation, which is half of the time of a tiny one.

    Where nobody looks at it, an empty file takes its place; tests that do look are marked `pictures`.
    """
    if request.node.get_closest_marker("pictures"):
        return
    monkeypatch.setattr("fftlm_jax.training.curves.draw_curves", lambda records, file, title: file.touch())
    monkeypatch.setattr("fftlm_jax.raft.figure.draw_cycles", lambda results, file, title: file.touch())
