"""How every command of this package ends: an error is one line and an exit code, and a closed pipe is no error."""

import os
import sys
from collections.abc import Callable

from absl import logging

from fftlm_jax.errors import RunError
from fftlm_jax.untrusted import printable


def run_command(action: Callable[[], None]) -> int:
    """Runs `action`; returns 0, or the exit code of the `RunError` it raised, which is printed as one line."""
    logging.set_verbosity(logging.ERROR)  # Orbax narrates every read and save at INFO and WARNING.
    try:
        action()
        sys.stdout.flush()
    except RunError as error:
        print(f"{type(error).__name__}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever reads, such as `head`, has seen enough. The interpreter must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
