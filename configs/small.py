"""`aligned`, small enough to compare variants of it on two CPU cores: the base of the experiments.

    python main.py --config=configs/small.py --workdir=runs/small

No curriculum: each experiment says what it adds. Expected result: see experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import aligned


def get_config() -> ConfigDict:
    c = aligned.get_config()
    c.model.update(seq_len=256, kernel_len=64, d_model=128, n_layers=4, attention_heads=4)
    c.curriculum.update(rule="none", ladder=(0.25, 0.5, "full"), min_epoch=1, window=100, check_every=50)
    c.curriculum.threshold = 0.035
    c.lr.update(base=4e-3, stages=(("rest", 1.0, 0.05),))
    c.train.update(batch_size=8, accum_steps=1, steps_per_epoch=100, epochs=8, log_every=25)
    c.eval.update(every=400, batch_size=16, max_bytes=131072)
    c.checkpoint.every = 400
    return c
