"""Command line: `python -m fftlm_jax.export`, an older name of `fftlm export`."""

import sys

from fftlm_jax.export.export_run import main

if __name__ == "__main__":
    sys.exit(main())
