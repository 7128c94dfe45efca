"""The machines that a run can be planned for, by name, and what their makers publish of them.

A name is a kind of chip and how many: `v5e-16`, `v5e-4x4`, `h100-8`, `h100-2x8`. A single number of TPU v4 and v5p
counts cores, two a chip, as in the names of Google Cloud; a shape such as `v5p-2x2x2` counts chips everywhere. GPUs are
hosts times GPUs of a host.

Nothing here imports JAX until `devices_of` is called.
"""

import dataclasses
import importlib.util
import math
import re
from collections.abc import MutableMapping
from typing import Any

from fftlm_jax.config.limits import nearest
from fftlm_jax.runtime.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device, in bytes, FLOP/s of dense bfloat16 products, and bytes/s.

    `links` is what a device can send to all its neighbours together, `network` what a GPU can send beyond its host (the
    links of a TPU cross hosts). `usable` is the part of the memory that a program gets: on GPUs JAX takes three
    quarters unless told otherwise; a TPU's compiler decides itself.
    """

    platform: str
    name: str
    memory: int
    flops: float
    memory_rate: float
    links: float
    network: float | None = None
    usable: float = 1.0


# Google Cloud's pages on each TPU version; half of the bidirectional rate is what a chip sends. NVIDIA's data sheets of
# the SXM cards; NVLink's half, and one network adapter a GPU as in their own servers.
CHIPS = {
    "v4": Chip("tpu", "TPU v4", 32 * 2**30, 275e12, 1228e9, 300e9),
    "v5e": Chip("tpu", "TPU v5e", 16 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip("tpu", "TPU v5p", 95 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip("tpu", "TPU v6e", 32 * 2**30, 918e12, 1638e9, 400e9),
    "a100": Chip("gpu", "NVIDIA A100 80GB", 85_198_045_184, 312e12, 2039e9, 300e9, 25e9, 0.75),
    "h100": Chip("gpu", "NVIDIA H100 80GB", 84_942_979_072, 989e12, 3352e9, 450e9, 50e9, 0.75),
    "h200": Chip("gpu", "NVIDIA H200 141GB", 150_754_820_096, 989e12, 4800e9, 450e9, 50e9, 0.75),
}
_CORES_IN_NAME = ("v4", "v5p")
# Shapes of a number of chips: those that can be rented.
_SHAPES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"},
}
EXAMPLES = ("v4-8", "v5e-1", "v5e-4", "v5e-16", "v5p-8", "v6e-16", "a100-8", "h100-1", "h100-8", "h100-2x8", "h200-8")
# For the two families of compilers: the module that must be there, and what installs it.
_NEEDS = {"tpu": ("libtpu", "fftlm_jax[tpu]"), "gpu": ("jax_plugins.xla_cuda13", "fftlm_jax[cuda-compile]")}


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of chip, and how many of them in what shape: chips along each axis, or (hosts, GPUs of a host)."""

    target: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """How many devices JAX sees."""
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Hosts of a GPU cluster; 1 for a TPU slice, whose links cross hosts."""
        return self.shape[0] if self.chip.platform == "gpu" else 1


def machine_named(target: str) -> Machine:
    """The machine of a name.

    Raises:
        UsageError: for a name that is none, with the nearest and all kinds of chips.
    """
    kind, _, size = target.strip().lower().partition("-")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(r"\d{1,5}(x\d{1,5}){0,2}", size) or "0" in size.split("x"):
        close = nearest(target, EXAMPLES)
        raise UsageError(
            f"--target: {target!r} is no machine that can be planned for{close}; write a chip ({', '.join(CHIPS)}) and "
            f"how many, for example {', '.join(EXAMPLES)}."
        )
    numbers = tuple(map(int, size.split("x")))
    if chip.platform == "gpu":
        if len(numbers) > 2:
            raise UsageError(f"--target: {target}: GPUs are hosts x GPUs of a host, for example {kind}-2x8.")
        return Machine(target, chip, numbers if len(numbers) == 2 else (1, *numbers))
    axes = 3 if kind in _CORES_IN_NAME else 2
    if len(numbers) == 1:
        chips = numbers[0] // 2 if kind in _CORES_IN_NAME else numbers[0]
        if chips not in _SHAPES[axes]:
            known = ", ".join(f"{kind}-{n * 2 if kind in _CORES_IN_NAME else n}" for n in _SHAPES[axes])
            raise UsageError(f"--target: {target} is no slice of this TPU; choose of {known}, or give its shape.")
        numbers = tuple(map(int, _SHAPES[axes][chips].split("x")))
    if len(numbers) != axes:
        example = _SHAPES[axes][16]
        raise UsageError(f"--target: {target}: a slice of this TPU has {axes} axes, for example {kind}-{example}.")
    return Machine(target, chip, numbers)


def part_of(machine: Machine, devices: int) -> Machine:
    """The machine with only so many of its devices in use, on as few hosts as hold them."""
    if devices == machine.devices:
        return machine
    if machine.chip.platform == "tpu":
        return dataclasses.replace(machine, shape=(devices,))
    hosts = -(-devices // machine.shape[1])
    return dataclasses.replace(machine, shape=(hosts, -(-devices // hosts)))


def prepare(target: str, environment: MutableMapping[str, str]) -> Machine:
    """The machine of a name, in an environment in which a process can plan for it. To be called before JAX is imported.

    Raises:
        UsageError: for a name that is none, or where the compiler of its chips is not installed.
    """
    machine = machine_named(target)
    module, extra = _NEEDS[machine.chip.platform]
    if not _is_installed(module):
        raise UsageError(f"--target: {machine.chip.name} needs its compiler; run: pip install '{extra}'.")
    environment["JAX_PLATFORMS"] = "cpu"  # The machine is not there; with its plugin installed, JAX would look for it.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost"}
    # Compiling needs no chip, so several processes may do it, where libtpu would let only one begin.
    for name, value in {**quiet, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        environment.setdefault(name, value)
    return machine


def devices_of(machine: Machine) -> list[Any]:
    """The machine's devices, for meshes and shardings; nothing can run on them.

    Raises:
        UsageError: if the compiler knows no such machine.
    """
    from jax.experimental import topologies

    try:
        if machine.chip.platform == "gpu":
            described = topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                target_config=_gpu_text(machine),
                topology="x".join(map(str, (1, *machine.shape))),
            )
        else:
            described = topologies.get_topology_desc(platform="tpu", **_tpu_topology(machine))
    except Exception as error:  # JaxRuntimeError, ValueError and others, by the version of the compiler.
        raise UsageError(f"--target: {machine.target}: the compiler says {str(error).splitlines()[0]}") from error
    return list(described.devices)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Of the package around it.
        return False


def _tpu_topology(machine: Machine) -> dict[str, Any]:
    kind = machine.target.strip().lower().partition("-")[0]
    settings: dict[str, Any] = {"topology_name": f"{kind}:{'x'.join(map(str, machine.shape))}"}
    if kind in _CORES_IN_NAME:
        return settings | {"chip_config_name": "megacore"}
    # Chips are on hosts of four unless told otherwise, and slices smaller than that are one host.
    if machine.shape in ((1, 1), (2, 4)):
        settings["chips_per_host_bounds"] = (*machine.shape, 1)
    return settings


# What XLA asks of a card: facts of data sheets and of CUDA's table of compute capabilities, in the fields that several
# versions have read.
_GPU_TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_core}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {memory_rate}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {shared_block}
  cuda_compute_capability {{ {capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {version}"
  model_str: "{name}"
  device_address_bits: 64
  pcie_bandwidth: 34359738368
  ecc_enabled: true
  name: "{name}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
_HOPPER = {
    "shared_core": 233472, "shared_block": 232448, "cores": 132, "fpus": 128, "l2": 52428800, "clock": 1.98,
    "capability": "major: 9 feature_extension: ACCELERATED_FEATURES", "version": "9.0a",
}  # fmt: skip
_AMPERE = {
    "shared_core": 167936, "shared_block": 166912, "cores": 108, "fpus": 64, "l2": 41943040, "clock": 1.41,
    "capability": "major: 8", "version": "8.0",
}  # fmt: skip


def _gpu_text(machine: Machine) -> str:
    chip = machine.chip
    facts = _AMPERE if chip is CHIPS["a100"] else _HOPPER
    return _GPU_TEXT.format(name=chip.name, memory=chip.memory, memory_rate=int(chip.memory_rate), **facts)
