"""Command line: `python -m fftlm_jax.training.doctor RUN_OR_LOG`, an older name of `fftlm doctor`."""

import sys

from fftlm_jax.doctor.examine import main

if __name__ == "__main__":
    sys.exit(main())
