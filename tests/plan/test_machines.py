"""Names of machines, and what is said where one is none or its compiler is missing."""

import pytest

from fftlm_jax.plan import machines
from fftlm_jax.plan.machines import CHIPS, EXAMPLES, machine_named, part_of, prepare
from fftlm_jax.runtime.errors import UsageError


@pytest.mark.parametrize(
    "name,devices,shape,hosts",
    (
        ("v5e-16", 16, (4, 4), 1),
        ("v5e-4x4", 16, (4, 4), 1),
        ("V6E-1", 1, (1, 1), 1),
        ("v5p-8", 4, (2, 2, 1), 1),
        ("v5p-2x2x2", 8, (2, 2, 2), 1),
        ("h100-8", 8, (1, 8), 1),
        ("h100-2x8", 16, (2, 8), 2),
    ),
)
def test_names(name, devices, shape, hosts):
    machine = machine_named(name)
    assert (machine.devices, machine.shape, machine.hosts) == (devices, shape, hosts)


def test_every_example_is_one_and_every_chip_has_an_example():
    assert {machine_named(name).chip.name for name in EXAMPLES} == {chip.name for chip in CHIPS.values()}


@pytest.mark.parametrize(
    "name,sentence",
    (
        ("h100", "did you mean 'h100-"),
        ("v9-16", "is no machine that can be planned for"),
        ("", "is no machine"),
        ("v5e-0", "is no machine"),
        ("v5e-4x", "is no machine"),
        ("v5e-3", "choose of v5e-1, v5e-4"),
        ("v5p-5", "choose of v5p-8, v5p-16"),
        ("v5e-2x2x2", "has 2 axes, for example v5e-4x4"),
        ("v5p-2x2", "has 3 axes"),
        ("h100-1x2x8", "hosts x GPUs of a host"),
        ("v5e-" + "9" * 400, "is no machine"),
    ),
)
def test_what_is_no_machine_is_refused_in_one_sentence(name, sentence):
    with pytest.raises(UsageError, match="--target") as error:
        machine_named(name)
    assert sentence in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 900


@pytest.mark.parametrize("name,extra", (("v5e-4", "fftlm_jax[tpu]"), ("h100-1", "fftlm_jax[cuda-compile]")))
def test_a_compiler_that_is_missing_is_named(monkeypatch, name, extra):
    monkeypatch.setattr(machines, "_is_installed", lambda module: False)
    environment = {}
    with pytest.raises(UsageError, match="needs its compiler") as error:
        prepare(name, environment)
    assert extra in str(error.value) and environment == {}


def test_the_user_s_own_environment_stays(monkeypatch):
    monkeypatch.setattr(machines, "_is_installed", lambda module: True)
    environment = {"TPU_ACCELERATOR_TYPE": "v4-8", "JAX_PLATFORMS": "tpu"}
    prepare("v5e-4", environment)
    assert environment["TPU_ACCELERATOR_TYPE"] == "v4-8"
    assert environment["JAX_PLATFORMS"] == "cpu", "or JAX would look for the chips"


def test_a_part_of_a_machine_is_on_as_few_hosts_as_hold_it():
    machine = machine_named("h100-4x8")
    assert [part_of(machine, n).shape for n in (32, 16, 8, 1)] == [(4, 8), (2, 8), (1, 8), (1, 1)]
    assert part_of(machine_named("v5e-16"), 4).devices == 4
