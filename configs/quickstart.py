"""A few minutes on two CPU cores: the whole method, small, on the Python standard library's own source.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart

Expected result: two raises by the plateau rule and a held-out bpb near 1.9 after 3 to 4 minutes.
"""

from ml_collections import ConfigDict

from configs import next_byte


def get_config() -> ConfigDict:
    c = next_byte.get_config()
    c.model.update(seq_len=256, kernel_len=64, d_model=128, n_layers=4)
    # The documents' ladder as fractions of Nyquist, checked often: the low rungs should not eat a budget this small.
    c.curriculum.update(ladder=(0.25, 0.5, "full"), min_epoch=1, check_every=50, threshold=0.02)
    c.lr.base = 4e-3
    c.train.update(batch_size=16, accum_steps=1, steps_per_epoch=125, epochs=8, log_every=25)
    c.eval.update(every=125, batch_size=16, max_bytes=65536)
    c.checkpoint.every = 250
    return c
