"""The mesh of devices, what is sharded over it, and what a traced program says of it.

The mesh has two axes: `data`, along the batch, and `fsdp`, which also cuts large parameters, and with them what the
optimizer keeps beside them; the batch is cut along both. A mesh of one device is None: nothing is then sharded, or even
said to be.

`within(mesh)` puts a mesh in force, as `jax.set_mesh` does: for the thread that traces, so it belongs into the function
that lowers, and not around the code that starts a thread. Without a mesh all of this does nothing.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.platform import partitioned_axes


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Cut along one axis, that of the batch, over all devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


class StackShardings(NamedTuple):
    """Where stacks of matrices (stack, in, out) are while an optimizer iterates them, and before and after.

    `dealt`: whole matrices, dealt to all devices. `held`: a function of a stack's shape, sharded as parameters are.
    Between the two every device exchanges parts of matrices with the others (an all-to-all), where from whole stacks
    each would first gather all of them.
    """

    dealt: NamedSharding
    held: Callable[[tuple[int, ...]], NamedSharding]


def on_stacks(mesh: Mesh | None, min_size: int) -> StackShardings | None:
    """The shardings of stacks on a mesh that shards parameters of at least `min_size` entries; None without a mesh."""
    if mesh is None:
        return None
    fsdp = mesh.shape["fsdp"]
    held = lambda shape: NamedSharding(mesh, parameter_spec(("blocks",), shape, fsdp, min_size))  # noqa: E731
    return StackShardings(rows(mesh), held)


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
    """Lays a tree out on the devices, in a traced program."""
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def abstract_at(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """The shapes and dtypes of a tree's arrays, all of them where one sharding says."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


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


BATCH_AXES = ("data", "fsdp")


def make_mesh(
    data: int,
    fsdp: int,
    batch_size: int,
    key: str = "train.batch_size",
    devices: Sequence[jax.Device] | None = None,
) -> Mesh | None:
    """The mesh of `mesh.data` x `mesh.fsdp` devices.

    Args:
        data: devices along the batch; -1 for all that `fsdp` leaves.
        fsdp: devices that large parameters are sharded over.
        batch_size: rows of a micro-batch.
        key: of the config, which they come from.
        devices: to make it of, for example those of a machine that is not there; this machine's by default.

    Raises:
        UsageError: for devices that are not there or would be left out, and for a batch that they do not divide.
    """
    is_shared = devices is None and jax.process_count() > 1
    devices = jax.devices() if devices is None else devices
    available = len(devices)
    if data == -1:
        if available % fsdp:
            raise UsageError(f"config.mesh.fsdp: {fsdp} does not divide the {available} devices; choose a divisor.")
        data = available // fsdp
    used = data * fsdp
    if used > available:
        raise UsageError(f"config.mesh: data {data} x fsdp {fsdp} devices, but there are {available}; lower them.")
    if used < available and is_shared:
        raise UsageError(
            f"config.mesh: data {data} x fsdp {fsdp} leaves out some of the {available} devices, and with them perhaps "
            "a whole process; set mesh.data to -1."
        )
    if batch_size % used:
        raise UsageError(
            f"config.{key}: {batch_size} rows of a micro-batch do not divide among {used} devices; make it a multiple, "
            "or set mesh.data lower."
        )
    if used == 1:
        return None
    # Auto axes: under the newer Explicit ones plain indexing and reshapes of a sharded batch are errors.
    axis_types = (AxisType.Auto,) * len(BATCH_AXES)
    try:
        return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=axis_types, devices=devices[:used])
    except NotImplementedError:  # On a torus of TPUs such as 4 x 4, where neither axis of the mesh is one of its own.
        arranged = mesh_utils.create_device_mesh((data, fsdp), devices[:used], allow_split_physical_axes=True)
        return Mesh(arranged, BATCH_AXES, axis_types=axis_types)


_WHOLE = "whole_parameter"
_ON_THE_WAY = ("optimization_barrier", "sharding_constraint")


def within(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """The context in which a program for this mesh is traced."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def on_own_rows(function: Callable[..., jax.Array], batch: jax.Array, *shared: jax.Array) -> jax.Array:
    """`function(batch, *shared)`, where every device works on its own rows of the batch alone.

    For FFTs, which the partitioner would otherwise run in full, on the gathered batch, on every device.

    Args:
        function: acts on each row of `batch` by itself, and returns one row for each.
        batch: the leading axis is that of the batch.
        shared: what all rows need, whole on every device.
    """
    if not partitioned_axes():
        return function(batch, *shared)
    in_specs = (PartitionSpec(BATCH_AXES), *(PartitionSpec(),) * len(shared))
    # Unchecked: the check asks of custom gradients that they name the axes they vary over, which ours need not know.
    sharded = jax.shard_map(function, in_specs=in_specs, out_specs=PartitionSpec(BATCH_AXES), check_vma=False)
    return sharded(batch, *shared)


def averaged_over_devices(function: Callable[..., Any], batch: Any, *shared: Any) -> Any:
    """The mean over all devices of `function(batch, *shared)`, where each works on its own rows of the batch alone.

    What the function adds up over its part of the batch is summed over the devices once, at its end, and in the dtype
    that it returns. Inside it nothing is sharded.

    Args:
        function: of a batch and what all share, to a tree of arrays that are means over the rows of its batch.
        batch: tree of arrays (micro-batches, rows, ...), the rows cut along all devices of the mesh in force.
        shared: what all rows need, whole on every device.
    """

    def of_own_rows(batch: Any, *shared: Any) -> Any:
        return jax.lax.pmean(function(batch, *shared), BATCH_AXES)

    in_specs = (PartitionSpec(None, BATCH_AXES), *(PartitionSpec(),) * len(shared))
    return jax.shard_map(of_own_rows, in_specs=in_specs, out_specs=PartitionSpec(), check_vma=False)(batch, *shared)


def whole(params: Any, dtype: jax.typing.DTypeLike) -> Any:
    """Parameters gathered from all devices, where they are sharded; their gradients stay as they fall.

    Matrices of products travel in `dtype`, that of the products, which casts them in any case.
    """
    if partitioned_axes().get("fsdp", 1) == 1:
        return params

    def gathered(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if "kernel" in _names(path) and leaf.dtype != dtype:  # In a state of NNX "value" follows.
            leaf = jax.lax.optimization_barrier(leaf.astype(dtype))  # Or XLA would gather first and cast then.
        return checkpoint_name(_gather(leaf), _WHOLE)

    return jax.tree_util.tree_map_with_path(gathered, params)


def regathering(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that gathers its parameters once more in the backward pass, and does not keep them from the forward."""
    if partitioned_axes().get("fsdp", 1) == 1:
        return layer
    return jax.checkpoint(layer, policy=_keeps_all_but_whole_parameters)


def _keeps_all_but_whole_parameters(primitive: Any, *_: Any, **settings: Any) -> bool:
    """The policy of `jax.checkpoint` behind `regathering`.

    JAX has one that is to save all but what bears certain names, but it saves everything. Besides the name, the
    results on the way to it must be refused, or these are kept in its place.
    """
    return primitive.name not in _ON_THE_WAY and settings.get("name") != _WHOLE


def _constrain_to_whole(x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


# The constraint's own gradient is a constraint too: it would bring every gradient whole to every device.
_gather = jax.custom_vjp(_constrain_to_whole)
_gather.defvjp(lambda x: (_constrain_to_whole(x), None), lambda _, gradient: (gradient,))
