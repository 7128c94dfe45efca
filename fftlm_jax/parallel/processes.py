"""Several processes that train one model: how they find each other, wait for each other, and agree.

All run the same program on the same config. What a process knows alone (a signal, a failed save) is shared before
anybody acts on it, or they would wait for each other forever.
"""

import contextlib
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fftlm_jax.parallel.sharding import replicated, rows
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.jax_settings import require_devices

_BARRIERS = itertools.count()  # A barrier's name may be used once; all processes come to all of them in one order.
_PATIENCE_MS = 3_600_000  # Of waiting for a slow process; one that died is known after `heartbeat` seconds.


def join_processes(coordinator: str, processes: int, process_id: int, heartbeat: int) -> None:
    """Joins the other processes of a run; does nothing for one process, or where that was done before.

    Args:
        coordinator: host:port of process 0; "auto" for what jax detects (Slurm, TPU pods); "" for one process.
        processes, process_id: how many there are, and which this is, from 0; unused under "auto".
        heartbeat: seconds of silence after which a process counts as dead.

    Raises:
        UsageError: if they do not find each other, or jax finds no device.
    """
    if not coordinator or jax.distributed.is_initialized():
        return
    # Its handler of SIGTERM would take the place of our own.
    jax.config.update("jax_enable_preemption_service", False)
    named = {} if coordinator == "auto" else dict(
        coordinator_address=coordinator, num_processes=processes, process_id=process_id
    )  # fmt: skip
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat, **named)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"config.distributed.coordinator: {coordinator}: {str(error).splitlines()[0]}") from error
    require_devices()


def is_first_process() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns once every process has come to this place; `what` names it in errors.

    Asks the coordinator, not the devices: on CPU these give each other up after half a minute.
    """
    if jax.process_count() == 1:
        return
    import orbax.checkpoint as ocp  # Late: it takes a second to import, which the model alone should not wait for.

    ocp.multihost.get_barrier_sync_fn()(key=f"fftlm_jax {next(_BARRIERS)}: {what}", timeout_ms=_PATIENCE_MS)


@contextlib.contextmanager
def together(*errors: type[Exception]) -> Iterator[None]:
    """A block that all processes enter, and that succeeds in all of them or fails in each.

    Raises:
        OSError: where the block went well here, but in another process raised one of `errors`.
    """
    try:
        yield
    except errors:
        _all_well(False)
        raise
    if not _all_well(True):
        raise OSError("it failed in another process")


def _all_well(well: bool) -> bool:
    wait_for_all("all say whether it went well")
    return well if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.asarray(well))))


class StopTogether:
    """Turns a signal that some process caught into one step after which all of them stop.

    With several processes every step is followed by a maximum over their signals, which is read after the next one: by
    then it is there, and nobody waits. With one process the signal is taken at once.
    """

    def __init__(self, mesh: Mesh | None) -> None:
        self._mesh = mesh if jax.process_count() > 1 else None
        self._asked: jax.Array | None = None
        if self._mesh is not None:
            self._maximum = jax.jit(jnp.max, out_shardings=replicated(self._mesh))

    def signal(self, caught: int | None) -> int | None:
        """The number of the signal to stop for, or None; to be called once a step, with what this process caught."""
        if self._mesh is None:
            return caught
        asked, mesh = self._asked, self._mesh
        mine = np.full(mesh.size, caught or 0, np.int32)
        self._asked = self._maximum(jax.make_array_from_callback(mine.shape, rows(mesh), lambda index: mine[index]))
        return None if asked is None else int(asked) or None
