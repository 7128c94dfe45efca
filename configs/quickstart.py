"""A few minutes on two CPU cores: the whole method, small, on the Python standard library's own source.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart

Expected result: two raises by the plateau rule and a held-out bpb near 1.9 after 1.5 to 5 minutes, by processor.
"""

from ml_collections import ConfigDict

from configs import next_byte


def get_config() -> ConfigDict:
    c = next_byte.get_config()
    c.model.update(seq_len=256, kernel_len=64, d_model=128, n_layers=4)
    # The documents' ladder as fractions of Nyquist. The loss still falls by 2 to 4 % in 50 steps here, and low rungs
    # should not eat a budget this small: a large threshold, checked often, over a window that rises above the noise.
    c.curriculum.update(ladder=(0.25, 0.5, "full"), min_epoch=1, window=100, check_every=50, threshold=0.035)
    # One stage: with the documents' borders at 2 and 5 epochs, a raise just before a border gets a stub of a tooth.
    c.lr.update(base=4e-3, stages=(("rest", 1.0, 0.05),))
    c.train.update(batch_size=16, accum_steps=1, steps_per_epoch=100, epochs=8, log_every=25)
    c.eval.update(every=100, batch_size=16, max_bytes=65536)
    c.checkpoint.every = 200
    return c
