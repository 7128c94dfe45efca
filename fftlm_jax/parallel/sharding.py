"""What lies where: shardings of batches, of parameters, and of all that the optimizer keeps beside parameters."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fftlm_jax.parallel.mesh import BATCH_AXES


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Cut along one axis, that of the batch, over all devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def on_stack(mesh: Mesh | None) -> NamedSharding | None:
    """Of stacks of matrices (stack, in, out): whole matrices, dealt to all devices."""
    return None if mesh is None else rows(mesh)


def round_up_rows(count: int, mesh: Mesh | None) -> int:
    """The next number of rows that all devices share equally."""
    devices = 1 if mesh is None else mesh.size
    return -(-count // devices) * devices


def state_shardings(state: Any, params: Any, mesh: Mesh, min_size: int) -> Any:
    """A sharding for every leaf of a training state.

    A parameter of at least `min_size` entries is cut over `fsdp`, along its longest axis that divides. So is whatever
    has its shape and its path at the end of its own: moments, momenta, averages. All else is whole on every device.

    Args:
        state: abstract training state, with the parameters somewhere in it.
        params: the abstract parameters by themselves; those under `blocks` have a leading layer axis.
    """
    specs = {
        path: (leaf.shape, parameter_spec(path, leaf.shape, mesh.shape["fsdp"], min_size))
        for path, leaf in _leaves_by_path(params)
    }

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = _names(path)
        for first in range(len(names)):
            shape, spec = specs.get(names[first:], (None, None))
            if shape == leaf.shape:
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def parameter_spec(path: tuple[str, ...], shape: tuple[int, ...], fsdp: int, min_size: int) -> PartitionSpec:
    """How a parameter is cut: never along the layers of a stack, which are used one after the other."""
    first = 1 if path[0] == "blocks" else 0
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < min_size or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, "fsdp")


def constrain(tree: Any, shardings: Any) -> Any:
    """In a traced program: the tree, laid out so."""
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def distribute(tree: Any, shardings: Any) -> Any:
    """Arrays of the host, the same in every process, as global arrays of which each device takes its part."""

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree, shardings)


def one_copy(tree: Any, mesh: Mesh | None) -> Any:
    """A tree of global arrays, whole on one device of this process. On a mesh all processes must call it together."""
    if mesh is None:
        return tree
    everywhere = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), everywhere)


def _leaves_by_path(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    return [(_names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
