"""What a traced program says of the mesh that is in force while it is traced: rows that stay apart, parameters whole.

`within(mesh)` puts a mesh in force, as `jax.set_mesh` does: for the thread that traces, so it belongs into the function
that lowers, and not around the code that starts a thread. Without a mesh all of this does nothing.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from fftlm_jax.parallel.mesh import BATCH_AXES

_WHOLE = "whole_parameter"


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
    if not _axis_sizes():
        return function(batch, *shared)
    in_specs = (PartitionSpec(BATCH_AXES), *(PartitionSpec(),) * len(shared))
    # Unchecked: the check asks of custom gradients that they name the axes they vary over, which ours need not know.
    sharded = jax.shard_map(function, in_specs=in_specs, out_specs=PartitionSpec(BATCH_AXES), check_vma=False)
    return sharded(batch, *shared)


def whole(params: Any) -> Any:
    """Parameters gathered from all devices, where they are cut; their gradients stay as they fall."""
    if _axis_sizes().get("fsdp", 1) == 1:
        return params
    return jax.tree.map(lambda x: checkpoint_name(_gather(x), _WHOLE), params)


def regathering(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that gathers its parameters once more in the backward pass, and does not keep them from the forward."""
    if _axis_sizes().get("fsdp", 1) == 1:
        return layer
    return jax.checkpoint(layer, policy=jax.checkpoint_policies.save_anything_except_these_names(_WHOLE))


def _axis_sizes() -> dict[str, int]:
    return dict(jax.sharding.get_abstract_mesh().shape)


def _constrain_to_whole(x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


# The constraint's own gradient is a constraint too: it would bring every gradient whole to every device.
_gather = jax.custom_vjp(_constrain_to_whole)
_gather.defvjp(lambda x: (_constrain_to_whole(x), None), lambda _, gradient: (gradient,))
