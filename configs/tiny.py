"""A model that trains in seconds on one CPU core: the base of `experiments.sharpness` and `.plateau_simulation`.

    python main.py --config=configs/tiny.py --workdir=runs/tiny

A constant learning rate and no clipping, so that nothing but the loss surface and the data moves the loss. No
curriculum: each experiment says what it adds. Expected result: see experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import next_byte


def get_config() -> ConfigDict:
    c = next_byte.get_config()
    c.model.update(seq_len=128, kernel_len=32, d_model=48, n_layers=2, dtype="float32")  # The same on every processor.
    c.curriculum.update(rule="none", ladder=(0.25, 0.5, "full"))
    c.lr.update(base=3e-3, stages=(("rest", 1.0, 1.0),))
    c.optim.clip = 1e9
    c.train.update(batch_size=16, accum_steps=1, steps_per_epoch=100, epochs=4, log_every=50)
    c.eval.update(every=400, batch_size=32, max_bytes=131072)
    c.checkpoint.every = 400
    c.sample.bytes = 0
    return c
