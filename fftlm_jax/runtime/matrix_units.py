"""Which processors multiply bfloat16 numbers faster than float32, and what XLA should be told on each CPU.

Free of JAX, whose flags are read when it is imported.
"""

import functools
import importlib.metadata
import re
from collections.abc import MutableMapping
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def cpu_features() -> frozenset[str]:
    """What Linux says that this machine's processor can do ("avx512f", "amx_bf16", ...); nothing on other systems."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", _CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(flags[1].split() if flags else ())


def matrix_units(platform: str) -> str:
    """The units for bfloat16 products of a platform ("cpu", "gpu", "tpu"): "amx", "avx512_bf16" or "none" on this CPU.

    Of the others the name of the platform: all GPUs and TPUs that JAX runs on today have them.
    """
    if platform != "cpu":
        return platform
    features = cpu_features()
    return "amx" if "amx_bf16" in features else "avx512_bf16" if "avx512_bf16" in features else "none"


def automatic_dtype(platform: str) -> str:
    """What `model.dtype="auto"` becomes: bfloat16 where there are units for it, else float32."""
    return "float32" if matrix_units(platform) == "none" else "bfloat16"


_KNOWN_SINCE, _TESTED_BEFORE = (0, 10), (0, 13)


def cpu_flags() -> tuple[str, ...]:
    """Flags of XLA that make programs faster on this machine's CPU; measured, see experiments/LOG.md.

    The type of fusion replaces XLA's own list. "DOT" lets the library of kernels (YNNPACK) have products together with
    what surrounds them, which is faster in float32 but keeps it from the units for bfloat16; "INDIVIDUAL_DOT" gives it
    single products. Vectors of 512 bits mean nothing to processors without AVX-512.
    """
    fusion = "DOT" if matrix_units("cpu") == "none" else "INDIVIDUAL_DOT"
    width = ("--xla_cpu_prefer_vector_width=512",) if "avx512f" in cpu_features() else ()
    return (*width, f"--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_{fusion}")


def set_cpu_flags(environment: MutableMapping[str, str]) -> None:
    """Adds `cpu_flags` to `environment` unless it has XLA_FLAGS (if only empty) or this jaxlib was not tried with them.

    They change bits, so `env.json` records them. An unknown flag aborts the process, hence the gate on the version.
    """
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    if "XLA_FLAGS" not in environment and _KNOWN_SINCE <= version < _TESTED_BEFORE:
        environment["XLA_FLAGS"] = " ".join(cpu_flags())
