"""Command line: `python -m fftlm_jax.training.verify RUN`, an older name of `fftlm verify`."""

import sys

from fftlm_jax.checkpoints.verification import main

if __name__ == "__main__":
    sys.exit(main())
