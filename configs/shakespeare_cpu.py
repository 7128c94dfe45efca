"""A next-byte model of 0.53 M parameters, tuned for quality per second on two CPU cores.

    python main.py --config=configs/shakespeare_cpu.py --config.data.path=tinyshakespeare.txt

Expected result: 1.51 nats per byte (2.18 bpb; three seeds, 1.510 to 1.514) on the last tenth of TinyShakespeare after
70 s of training on two cores. For comparison and for what did not help, see experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import next_byte


def get_config() -> ConfigDict:
    c = next_byte.get_config()
    c.model.update(seq_len=256, kernel_len=64, d_model=128, n_layers=4)
    # A curriculum is not free in a budget this small.
    c.curriculum.update(rule="none", ladder=("full",))
    # Muon needs about half the data that AdamW needs, for a quarter more time per step.
    c.lr.update(base=0.02, stages=(("rest", 1.0, 0.02),))
    c.optim.update(name="muon", weight_decay=0.1)
    c.train.update(batch_size=8, accum_steps=1, steps_per_epoch=320, epochs=3, log_every=80)
    c.eval.update(every=320, batch_size=32, max_bytes=0)
    c.checkpoint.every = 320
    c.sample.prompt = "ROMEO:\n"
    c.data.source = "files"  # Name the text with --config.data.path.
    return c
