"""`aligned` with the convolutions done by FFT (`jnp.fft`) whatever the length of their kernels.

    python main.py --config=configs/fft.py --workdir=runs/fft --config.data.path=corpus.txt

Expected result: that of `aligned`, to round-off; `auto` takes matmuls where they are faster.
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.model.conv_method = "fft"
    return c
