"""The source card's three experiments differ in their schedules and in nothing else, as Python and as YAML."""

import importlib

import pytest

from fftlm_jax.config.reading import differences, read_config, to_dict
from fftlm_jax.raft.raft_parts import schedule_of, with_yaml_text
from tests.tiny import ROOT

NAMES = ("raft_constant_lr", "raft_decay_lr", "raft_aggressive_decay")
CYCLES = range(1, 9)


def config_of(name, **raft):
    values = importlib.import_module(name).get_config()
    values.raft.update(raft)
    return read_config(values)


def test_they_are_identical_but_for_the_schedule():
    first, *others = [to_dict(config_of(f"configs.experimental.{name}")) for name in NAMES]
    for other in others:
        assert set(differences(first, other)) <= {"raft.lr", "raft.lr_decay"}
    decays = [schedule_of(config_of(f"configs.experimental.{name}")) for name in NAMES]
    assert [round(s(5) / s(1), 4) for s in decays] == [1.0, 0.522, 0.2401]


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_beside_each_is_the_same_schedule(name):
    python = schedule_of(config_of(f"configs.experimental.{name}"))
    file = ROOT / "configs" / "experimental" / f"{name}.yaml"
    yaml = schedule_of(with_yaml_text(config_of("configs.raft", lr_yaml=str(file))))
    assert [yaml(n) for n in CYCLES] == [python(n) for n in CYCLES]
