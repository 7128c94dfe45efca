"""Command line: `python -m experiments.lr_schedule_calculator`, another name of `fftlm lr-schedule`."""

import sys

from fftlm_jax.raft.schedule_calculator import main

if __name__ == "__main__":
    sys.exit(main())
