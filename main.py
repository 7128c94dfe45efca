"""Trains a byte-level language model: python main.py --config=configs/quickstart.py --workdir=runs/quickstart

The same command again resumes. Any key can be overridden: --config.lr.base=1e-4. Keys: configs/aligned.py.
"""

import sys

from fftlm_jax.cli.train import run_as_program

if __name__ == "__main__":
    sys.exit(run_as_program())
