"""Command line: `python -m experiments.plot_loss`, another name of `fftlm compare`."""

import sys

from fftlm_jax.recording.compare_runs import main

if __name__ == "__main__":
    sys.exit(main())
