"""Command line: `python -m fftlm_jax.generation`, an older name of `fftlm generate`."""

import sys

from fftlm_jax.generation.terminal import main

if __name__ == "__main__":
    sys.exit(main())
