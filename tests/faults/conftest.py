"""One uninterrupted run for the tests of a module, and no fault that outlives its test."""

import pytest

from fftlm_jax import faults
from fftlm_jax.training import run
from tests.faults.runs import short_values


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    run(short_values(), workdir)
    return workdir


@pytest.fixture(autouse=True)
def disarmed():
    yield
    faults.arm("")
