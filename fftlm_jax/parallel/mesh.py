"""The devices of a run as a mesh of two axes: `data`, along the batch, and `fsdp`, which also cuts large parameters.

The batch is cut along both. A mesh of one device is None: nothing is then sharded, or even said to be.
"""

import jax
from jax.sharding import AxisType, Mesh

from fftlm_jax.errors import UsageError

BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int, fsdp: int, batch_size: int) -> Mesh | None:
    """The mesh of `mesh.data` x `mesh.fsdp` devices.

    Args:
        data: devices along the batch; -1 for all that `fsdp` leaves.
        fsdp: devices that large parameters are sharded over.
        batch_size: windows of a micro-batch.

    Raises:
        UsageError: for devices that are not there or would be left out, and for a batch that they do not divide.
    """
    available = jax.device_count()
    if data == -1:
        if available % fsdp:
            raise UsageError(f"config.mesh.fsdp: {fsdp} does not divide the {available} devices; choose a divisor.")
        data = available // fsdp
    used = data * fsdp
    if used > available:
        raise UsageError(f"config.mesh: data {data} x fsdp {fsdp} devices, but there are {available}; lower them.")
    if used < available and jax.process_count() > 1:
        raise UsageError(
            f"config.mesh: data {data} x fsdp {fsdp} leaves out some of the {available} devices, and with them perhaps "
            "a whole process; set mesh.data to -1."
        )
    if batch_size % used:
        raise UsageError(
            f"config.train.batch_size: {batch_size} windows do not divide among {used} devices; make it a multiple, or "
            "set mesh.data lower."
        )
    if used == 1:
        return None
    # Auto axes: under the newer Explicit ones plain indexing and reshapes of a sharded batch are errors.
    axis_types = (AxisType.Auto,) * len(BATCH_AXES)
    return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=axis_types, devices=jax.devices()[:used])
