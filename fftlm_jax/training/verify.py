"""Command line: `python -m fftlm_jax.training.verify RUN`."""

import sys

from fftlm_jax.checkpoints.verification import main

if __name__ == "__main__":
    sys.exit(main())
