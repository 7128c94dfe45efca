"""How many parameters a config describes is known before a model is built, and no config describes terabytes."""

import importlib

import jax
import pytest

from fftlm_jax.config.limits import LARGEST_MODEL, parameter_count, require_room
from fftlm_jax.config.reading import read_config
from fftlm_jax.model import build
from fftlm_jax.runtime.errors import CheckpointError, ConfigError
from tests.test_config import CONFIGS
from tests.tiny import tiny, tiny_values


@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"model__memory": "polar", "model__memory_piece": 6},
        {"model__memory": "aligned", "model__memory_piece": 5, "model__ffn_mult": 1.3},
        {"model__mixer": "attention", "curriculum__rule": "none", "model__chunk": 1, "objective__name": "next_byte"},
        {"model__projections": False, "model__kernel_basis": "taps", "model__n_layers": 3},
    ),
)
def test_parameters_are_counted_without_building(changes):
    model = tiny(**changes).model
    assert parameter_count(model) == sum(leaf.size for leaf in jax.tree.leaves(build(model)[1]))


@pytest.mark.parametrize(
    "message,changes",
    (
        (
            "the model would have .* parameters, more than",
            {"model__d_model": 2**16, "model__n_layers": 4096},
        ),
        ("taps in a layer", {"model__kernel_len": 2**20, "model__conv_heads": 2**16, "model__d_model": 2**16}),
        ("config.train.batch_size: .* bytes at once", {"train__batch_size": 2**24, "model__seq_len": 128}),
        ("config.eval.batch_size: .* bytes at once", {"eval__batch_size": 2**24, "model__seq_len": 128}),
        ("steps are more than", {"train__epochs": 2**20, "train__steps_per_epoch": 2**20}),
        (
            "attention compares .* pairs of positions",
            {"model__mixer": "attention", "curriculum__rule": "none", "model__seq_len": 2**19, "model__chunk": 1},
        ),
        ("config.optim.polar_steps: must be at most 64", {"optim__polar_steps": 10**12}),
        ("config.raft.prompts: must be at most", {"raft__prompts": 10**15}),
        ("config.raft.lora_rank: must be at most", {"raft__lora_rank": 10**12}),
        ("config.sample.bytes: must be at most", {"sample__bytes": 10**12}),
        ("config.lr.stages: must have at most 65536 entries", {"lr__stages": (("rest", 1.0, 0.1),) * 70_000}),
    ),
)
def test_sizes_without_end_are_refused(message, changes):
    with pytest.raises(ConfigError, match=message):
        read_config(tiny_values(**changes))


def test_no_config_of_the_project_comes_near_the_bounds():
    for name in CONFIGS:
        if not name.endswith("__init__"):
            model = importlib.import_module(name.replace("/", ".")).get_config().model
            assert parameter_count(model) < LARGEST_MODEL / 20, name


def test_many_faults_are_cut_short():
    values = {"model": {f"x{i}": 1 for i in range(10_000)} | {"\x1b[2J" * 9: 1}}
    with pytest.raises(ConfigError) as error:
        read_config(values)
    assert len(error.value.faults) < 60 and "9981 more keys are unknown" in str(error.value)
    rungs = tuple(range(1000, 9000))
    with pytest.raises(ConfigError) as error:
        read_config(tiny_values(curriculum__ladder=rungs))
    assert len(error.value.faults) == 51 and error.value.faults[-1] == "And 7950 more faults like these."


def test_room_is_a_matter_of_orders_of_magnitude():
    require_room("x", 3 << 19, 1 << 18)
    with pytest.raises(CheckpointError, match="describes a model of 1,572,865 parameters, but .* 262,144 numbers"):
        require_room("x", (3 << 19) + 1, 1 << 18)
