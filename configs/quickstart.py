"""A few minutes on two CPU cores: the whole method, small, on the Python standard library's own source.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.model.update(seq_len=256, kernel_len=64, d_model=128, n_layers=4, chunk=1)
    c.objective.name = "next_byte"
    c.curriculum.update(ladder=(0.25, 0.5, "full"), min_epoch=1, check_every=50, window=50, threshold=0.01)
    c.lr.update(base=4e-3)
    c.train.update(batch_size=16, accum_steps=1, steps_per_epoch=150, epochs=8, log_every=50)
    c.eval.update(every=150, max_bytes=65536, batch_size=16)
    c.checkpoint.every = 300
    return c
