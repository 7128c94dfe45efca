"""A next-byte model of at most 0.8 M parameters, tuned for quality per second on two CPU cores.

python main.py --config=configs/shakespeare_cpu.py --config.data.path=tinyshakespeare.txt
"""

from ml_collections import ConfigDict

from configs import next_byte


def get_config() -> ConfigDict:
    c = next_byte.get_config()
    c.model.update(seq_len=128, kernel_len=64, d_model=128, n_layers=4)
    # A curriculum is not free in a budget this small.
    c.curriculum.update(rule="none", ladder=("full",))
    c.lr.update(base=4e-3, stages=(("rest", 1.0, 0.02),))
    c.train.update(batch_size=16, accum_steps=1, steps_per_epoch=220, epochs=10, log_every=110)
    c.eval.update(every=1100, batch_size=64, max_bytes=0)
    c.checkpoint.every = 1100
    c.sample.prompt = "ROMEO:\n"
    return c
