"""Command line: `python -m fftlm_jax.cli`, for environments whose scripts are not on the path."""

import sys

from fftlm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
