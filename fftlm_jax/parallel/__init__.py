"""Many devices and many processes: the mesh, what lies where on it, what a traced program says of it, and agreements.

One device is no mesh (None), and everything is then as if this package were not there.
"""

from fftlm_jax.parallel.inside import on_own_rows, regathering, whole, within
from fftlm_jax.parallel.mesh import BATCH_AXES, make_mesh
from fftlm_jax.parallel.processes import (
    StopTogether,
    is_first_process,
    join_processes,
    together,
    wait_for_all,
)
from fftlm_jax.parallel.sharding import (
    constrain,
    distribute,
    on_stack,
    one_copy,
    replicated,
    round_up_rows,
    rows,
    state_shardings,
)
