"""Command line: `python -m fftlm_jax.evaluate RUN`."""

import sys

from fftlm_jax.evaluation.evaluate_run import main

if __name__ == "__main__":
    sys.exit(main())
