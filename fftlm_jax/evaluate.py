"""Command line: `python -m fftlm_jax.evaluate RUN`, an older name of `fftlm evaluate`; of the room `evaluation/`."""

import sys

from fftlm_jax.evaluation.evaluate_run import main

if __name__ == "__main__":
    sys.exit(main())
