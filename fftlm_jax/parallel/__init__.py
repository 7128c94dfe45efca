"""Many devices and many processes: the mesh, what lies where on it, what a traced program says of it, and agreements.

One device is no mesh (None), and everything is then as if this package were not there.
"""

from fftlm_jax.parallel.processes import StopTogether, is_first_process, join_processes, together, wait_for_all
from fftlm_jax.parallel.sharding import (
    BATCH_AXES,
    StackShardings,
    abstract_at,
    averaged_over_devices,
    constrain,
    distribute,
    make_mesh,
    on_own_rows,
    on_stacks,
    one_copy,
    regathering,
    replicated,
    round_up_rows,
    rows,
    state_shardings,
    whole,
    within,
)
