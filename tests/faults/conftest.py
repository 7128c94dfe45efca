"""One uninterrupted run for the tests of faults, and no fault that outlives its test."""

import pytest

from fftlm_jax.runtime import faults
from fftlm_jax.training import run
from tests.faults.runs import records_of, short_values
from tests.tiny import hash_of


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The folder of a run that nothing happened to. Tests read it or copy it."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    run(short_values(), workdir)
    before = hash_of(workdir), records_of(workdir)
    yield workdir
    assert (hash_of(workdir), records_of(workdir)) == before, "a test changed what others compare with"


@pytest.fixture(autouse=True)
def disarmed():
    yield
    faults.arm("")
