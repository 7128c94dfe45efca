"""A model small enough to train hundreds of times on two CPU cores: the base of the experiments on raises.

    python main.py --config=configs/curriculum_trial.py --workdir=runs/curriculum_trial

The documents' ladder, their epochs of a raise (2, 5, 10) and their stages, with 50 steps to an epoch. Raises come by
the epoch and not by the plateau rule, so that policies under comparison answer the same raises. Expected result: see
experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import next_byte


def get_config() -> ConfigDict:
    c = next_byte.get_config()
    c.model.update(seq_len=128, kernel_len=32, d_model=64, n_layers=2, dtype="float32")  # The same on every processor.
    # Fractions of Nyquist: 16, 32 and 64 of the 65 bins of this window are the documents' 128, 256 and 512 of 513.
    c.curriculum.update(rule="schedule", ladder=(0.25, 0.5, 1.0, "full"))
    c.curriculum.schedule = ((0, 0.25), (2, 0.5), (5, 1.0), (10, "full"))
    c.lr.base = 8e-3
    c.train.update(batch_size=8, accum_steps=1, steps_per_epoch=50, epochs=12, log_every=50)
    c.eval.update(every=600, before_raise=False, batch_size=32, max_bytes=131072)
    c.checkpoint.every = 600
    c.sample.bytes = 0
    return c
