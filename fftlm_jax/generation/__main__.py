import sys

from fftlm_jax.generation.cli import main

sys.exit(main())
