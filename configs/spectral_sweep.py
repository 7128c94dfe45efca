"""A model small enough to train a hundred times on two CPU cores: the base of `experiments.spectral_sweep`.

    python main.py --config=configs/spectral_sweep.py --workdir=runs/spectral

Muon with `optim.spectral_lr` 0, no curriculum, the learning rate of the source's runs (three stages, then down to a
tenth), and gradients in the source's units: its loss was summed over tokens and doubled, so `grad_units` is twice the
tokens of a step here (set it too where you override batch or window). Expected result: see experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import next_byte


def get_config() -> ConfigDict:
    c = next_byte.get_config()
    c.model.update(seq_len=128, kernel_len=32, d_model=96, n_layers=3, dtype="float32")  # The same on every processor.
    c.curriculum.update(rule="none", ladder=("full",))
    c.lr.update(base=0.02, schedule="cooldown")
    c.optim.update(name="muon", weight_decay=0.01, clip=1e9)  # Clipping would change the units of alpha.
    c.train.update(batch_size=16, accum_steps=1, steps_per_epoch=100, epochs=5, log_every=25)
    c.optim.grad_units = 2.0 * c.train.batch_size * c.model.seq_len
    c.eval.update(every=100, batch_size=32, max_bytes=262144)
    c.checkpoint.every = 500
    c.sample.bytes = 0
    return c
