"""The step on eight simulated devices: what it computes, what it sends about, what lies where."""

import json
import math
import os
import re
import subprocess
import sys

import jax
import pytest
from jax.sharding import AxisType

from fftlm_jax.parallel import make_mesh
from tests.parallel.eight_devices import CASES
from tests.tiny import ROOT, tiny_values

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def found():
    flags = f"--xla_force_host_platform_device_count=8 {os.environ['XLA_FLAGS']}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.parallel.eight_devices"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def dimensions(shape: str) -> list[int]:
    """Of a shape as the compiler writes it, or of the last of a tuple of them."""
    return [int(n) for n in re.findall(r"\[([\d,]*)\]", shape)[-1].split(",") if n]


@pytest.mark.parametrize("name,like", (("fft", "one"), ("fsdp", "one"), ("muon_fsdp", "muon")))
def test_it_learns_what_one_device_does(found, name, like):
    assert found[name]["losses"] == pytest.approx(found[like]["losses"], rel=1e-5)
    assert found[name]["bpb"] == pytest.approx(found[like]["bpb"], rel=1e-5)
    assert found[name]["losses"][-1] < found[name]["losses"][0]


def test_every_mesh_sees_the_same_windows_in_the_same_order(found):
    assert len({found[name]["order"] for name in CASES}) == 1


def moved(case, kind, *places):
    """Bytes that the collectives of a kind move in a step, at these places of it or at all."""
    return sum(c["moved"] for c in case["collectives"] if c["kind"] == kind and (not places or c["place"] in places))


def bytes_of_parameters(case):
    return 4 * sum(map(math.prod, case["parameters"]))


@pytest.mark.parametrize("name", ("fft", "toeplitz", "muon"))
def test_where_parameters_are_whole_gradients_are_summed_once_a_step_and_nothing_else_moves(found, name):
    case = found[name]
    model = [c for c in case["collectives"] if c["place"] != "optimizer"]
    assert {c["kind"] for c in model} == {"all-reduce"} and {c["times"] for c in model} == {1}
    assert case["micro_batches"] > 1, "or once a step would prove nothing"
    assert bytes_of_parameters(case) <= moved(case, "all-reduce") < 1.01 * bytes_of_parameters(case) + 64


@pytest.mark.parametrize("name", ("fsdp", "muon_fsdp", "fsdp_bfloat16"))
def test_sharded_parameters_are_gathered_in_the_forward_and_again_in_the_backward_pass(found, name):
    """By layers, so that no device ever keeps all of them: once each way, and never what has a batch axis."""
    case = found[name]
    is_sharded_stack = lambda shape: len(shape) == 3 and shape[0] == 2 and math.prod(shape) >= 500
    layers = 4 * sum(math.prod(shape) for shape in case["parameters"] if is_sharded_stack(shape))
    others = bytes_of_parameters(case) - layers
    forward, backward = moved(case, "all-gather", "forward"), moved(case, "all-gather", "backward")
    if name == "fsdp_bfloat16":  # In the type of the products, which this compiler may widen again.
        layers, others = layers // 2, 2 * others + layers // 2
    assert layers * case["micro_batches"] <= backward <= (layers + others) * case["micro_batches"]
    # A newer compiler gathers once for the forward passes of all micro-batches, where layers are unrolled.
    assert layers <= forward <= (layers + others) * case["micro_batches"]


def test_no_device_sends_anything_within_the_recurrence_of_a_memory(found):
    case = found["memory_fsdp"]
    assert max(c["times"] for c in case["collectives"]) <= case["micro_batches"]


@pytest.mark.parametrize("name", ("fft", "fsdp"))
def test_every_device_transforms_its_own_rows(found, name):
    signals = [dimensions(s) for s in found[name]["ffts"] if len(dimensions(s)) == 4]
    assert signals and all(shape[0] == 1 for shape in signals), "8 windows on 8 devices"
    whole = [dimensions(s)[0] for s in found["one"]["ffts"] if len(dimensions(s)) == 4]
    assert whole and set(whole) == {8}


@pytest.mark.parametrize("name", ("fsdp", "muon", "muon_fsdp"))
def test_only_parameters_are_gathered(found, name):
    """A parameter, a layer's part of one, or a stack of matrices of its shape: never anything with a batch axis."""
    gathered = [c for c in found[name]["collectives"] if c["kind"] == "all-gather"]
    assert gathered
    tails = {tuple(p[-2:]) for p in found[name]["parameters"] if len(p) >= 2}
    for collective in gathered:
        shape = dimensions(collective["shape"])
        if collective["place"] == "optimizer" and name == "muon_fsdp":  # From the other half of the devices.
            parts = {(a // 4, b) for a, b in tails} | {(a, b // 4) for a, b in tails}
            assert tuple(shape[-2:]) in parts, shape
        else:
            assert tuple(shape[-2:]) in tails, shape
        assert math.prod(shape[:-2]) <= 16, "at most the padded stack"


def test_sharded_matrices_go_to_their_polar_iterations_and_back_by_exchange(found):
    """Each device sends parts of matrices and gets whole ones: a part of the parameters, never all of them."""
    case = found["muon_fsdp"]
    exchanged = [c for c in case["collectives"] if c["kind"] == "all-to-all"]
    assert {c["place"] for c in exchanged} == {"optimizer"} and len(exchanged) == 2 * 3, "three stacks, there and back"
    assert moved(case, "all-to-all") <= 0.5 * bytes_of_parameters(case)
    assert moved(case, "all-gather", "optimizer") <= 0.5 * bytes_of_parameters(case)
    assert not [c for c in case["collectives"] if c["kind"] == "collective-permute"]


@pytest.mark.parametrize("name", ("muon", "muon_fsdp"))
def test_polar_iterations_work_on_whole_matrices_of_their_own(found, name):
    """6 matrices of 24 x 24 and 2 of either other shape, padded to 8 for 8 devices: one each, never rows of one."""
    products = [dimensions(s) for s in found[name]["polar"]]
    assert len(products) == 3 * 2 * 3, "three stacks, two iterations of three products"
    for shape in products:
        assert shape[-1] in (24, 36) and shape[-2] in (24, 36) and math.prod(shape[:-2]) == 1, shape


def test_large_parameters_and_their_moments_are_cut(found):
    where = found["fsdp"]["where"]
    cut = [name for name, spec in where.items() if "fsdp" in spec]
    assert "params/blocks/mlp/w_up/kernel" in cut and "params/head/kernel" in cut and "params/embed/embedding" in cut
    assert sum(name.endswith("blocks/mlp/w_up/kernel") for name in cut) == 3, "with both moments"
    assert {"params/blocks/mixer/gain", "step"} <= set(where) - set(cut)
    assert found["fsdp"]["state_bytes"] < 0.35 * found["fft"]["state_bytes"]


@pytest.mark.parametrize("name", CASES)
def test_the_state_is_updated_in_place_and_nothing_is_float64(found, name):
    assert found[name]["aliased"] == found[name]["leaves"]
    assert not found[name]["f64"]


def test_checkpoints_move_between_1_8_and_2_devices(found):
    assert len(found["moved"]) == 3 and all(found["moved"].values()), found["moved"]


@pytest.mark.parametrize(
    "overrides,sentence",
    (
        ({"mesh__data": 3}, "train.batch_size: 2 windows do not divide among 3 devices"),
        ({"mesh__data": 0}, "mesh.data: must be at least 1, or -1"),
        ({"distributed__processes": 2}, "distributed.coordinator: several processes need the host:port"),
        ({"distributed__coordinator": "somewhere"}, "must be host:port, 'auto' or ''"),
        ({"distributed__coordinator": "a:1", "distributed__process_id": 1}, "process_id: 1 is not below processes 1"),
        ({"distributed__coordinator": "a:1", "task": "raft"}, "task 'raft' runs in one process"),
    ),
)
def test_what_cannot_be_is_refused_in_one_sentence(overrides, sentence):
    from fftlm_jax.config.reading import read_config
    from fftlm_jax.runtime.errors import ConfigError

    with pytest.raises(ConfigError) as error:
        read_config(tiny_values(**overrides))
    assert any(sentence in fault for fault in error.value.faults), error.value.faults


def test_devices_that_are_not_there_are_refused():
    from fftlm_jax.parallel import make_mesh
    from fftlm_jax.runtime.errors import UsageError

    with pytest.raises(UsageError, match="data 2 x fsdp 2 devices, but there are 1"):
        make_mesh(2, 2, 8)
    with pytest.raises(UsageError, match="fsdp: 2 does not divide the 1 devices"):
        make_mesh(-1, 2, 8)
    assert make_mesh(-1, 1, 3) is None and make_mesh(1, 1, 3) is None


def test_a_stack_is_never_cut_along_its_layers():
    """Not even where these are its longest axis; other parameters are cut along theirs."""
    from jax.sharding import PartitionSpec

    from fftlm_jax.parallel.sharding import parameter_spec

    assert parameter_spec(("blocks", "mlp", "kernel"), (64, 8, 16), 4, 1) == PartitionSpec(None, None, "fsdp")
    assert parameter_spec(("blocks", "mixer", "gain"), (64, 6), 4, 1) == PartitionSpec()
    assert parameter_spec(("head", "kernel"), (64, 8, 16), 4, 1) == PartitionSpec("fsdp")


def test_a_mesh_whose_axes_are_none_of_the_machines_splits_them(monkeypatch):
    """As on a torus of 4 x 4 with `mesh.fsdp=2`, where JAX's own way gives up."""

    def gives_up(*_, **__):
        raise NotImplementedError("Failed to find assignment for logical_axis_index 1")

    monkeypatch.setattr(jax, "make_mesh", gives_up)
    mesh = make_mesh(8, 2, batch_size=16, devices=jax.devices()[:1] * 16)
    assert dict(mesh.shape) == {"data": 8, "fsdp": 2} and set(mesh.axis_types) == {AxisType.Auto}
