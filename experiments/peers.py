"""The sides of benchmarks that need PyTorch, which only the extra `bench` installs."""

import importlib
from types import ModuleType


def torch_peers() -> ModuleType | None:
    """`experiments.torch_peers`; None, said once a call, where there is no PyTorch."""
    try:
        return importlib.import_module("experiments.torch_peers")
    except ImportError:
        print("no PyTorch here (pip install -e '.[bench]'): its sides are left out")
        return None
