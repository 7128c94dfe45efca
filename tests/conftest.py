"""Settings of the whole suite: CPU, one cache of compiled programs for all processes, slow files first, little memory.

Most of the suite's time is compilation. Worker processes and the children they start inherit one cache directory from
the first process of a session. Outside of CI it is kept between sessions, in a folder whose name has the versions of
jax and the features of the processor; damaged entries are deleted before anything reads them.
"""

import gc
import os
import pathlib
import shutil
import sys
import tempfile
from importlib.metadata import version

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fftlm_jax.runtime import compile_cache  # noqa: E402

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the suite's time, and a third of the usual with these; children inherit them. A flag that XLA
# does not know ends the process, and jaxlib 0.12 knows the second no more.
_QUICK = ["--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"]
_KNOWN = _QUICK if version("jaxlib").startswith("0.10.") else _QUICK[:1]
os.environ.setdefault("XLA_FLAGS", " ".join(_KNOWN))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
_IS_KEPT = not os.environ.get("CI")
# The files that take longest (their order in `--durations=0`), so that no worker is left alone with one at the end.
_SLOW_FIRST = (
    "training/test_ways_to_train.py",
    "parallel/test_processes.py",
    "training/test_run.py",
    "experiments/test_sharpness.py",
    "raft/test_loop.py",
    "parallel/test_many_devices.py",
    "training/test_step.py",
    "generation/test_decode.py",
    "faults/test_points.py",
    "model/test_causality.py",
    "test_evaluate.py",
    "faults/test_disk.py",
    "raft/test_main.py",
    "model/test_streaming.py",
    "optim/test_contract.py",
    "generation/test_cli.py",
    "test_main.py",
)
_LARGEST_WORKER = 3 << 29  # Bytes of a worker from which it lets go of compiled programs.


def _cache_directory() -> pathlib.Path:
    """The folder of this session's compiled programs; a kept one is swept of what is damaged or too old."""
    if not _IS_KEPT:
        return pathlib.Path(tempfile.mkdtemp(prefix="fftlm_jax_tests_"))
    folder = compile_cache.default_folder(os.environ)
    folder = folder.with_name(f"tests-{folder.name}")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    compile_cache.sweep(folder)
    return folder


if not _IS_WORKER:  # Workers inherit it.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache_directory())

import jax  # noqa: E402  Behind the settings above, which it reads once.

from tests import shared_programs as shared  # noqa: E402


def pytest_unconfigure() -> None:
    """Marks what was compiled as whole, or deletes it; once, after all workers have ended."""
    folder = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    if _IS_WORKER:
        return
    if _IS_KEPT:
        compile_cache.seal(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; the order within files stays."""
    ranks = {name: rank for rank, name in enumerate(_SLOW_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.relative_to(ROOT / "tests").as_posix(), len(ranks)))


@pytest.fixture(autouse=True, scope="session")
def shared_programs():
    """See `tests/shared_programs.py`."""
    with pytest.MonkeyPatch.context() as patch:
        shared.share(patch)
        yield


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Frees compiled programs behind a file once the process has grown large: keeping all would take 4 GiB."""
    yield
    if _resident_bytes() > _LARGEST_WORKER:
        shared.forget()
        jax.clear_caches()
        gc.collect()


def _resident_bytes() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True, scope="session")
def quick_pictures():
    """Runs draw their picture at every evaluation, which is half of the time of a tiny one.

    Where nobody looks at it, an empty file takes its place; tests that do look are marked `pictures`. Yields what
    really draws.
    """
    from fftlm_jax.raft import cycles_figure
    from fftlm_jax.recording import curves

    drawing = {(curves, "draw_curves"): curves.draw_curves, (cycles_figure, "draw_cycles"): cycles_figure.draw_cycles}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in drawing:
            patch.setattr(module, name, lambda records, file, title: file.touch())
        yield drawing


@pytest.fixture(autouse=True)
def real_pictures(request, monkeypatch, quick_pictures):
    """What really draws, for tests that look at a picture."""
    if request.node.get_closest_marker("pictures"):
        for (module, name), draw in quick_pictures.items():
            monkeypatch.setattr(module, name, draw)
