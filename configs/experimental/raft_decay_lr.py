"""The source card's experiment, standard decay (0.85): `raft_constant_lr.py` but for the learning rate of its cycles.

    python main.py --config=configs/experimental/raft_decay_lr.py --workdir=runs/raft_decay_lr

What came of it is in experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs.experimental import raft_constant_lr


def get_config() -> ConfigDict:
    c = raft_constant_lr.get_config()
    c.raft.update(lr="exponential", lr_decay=0.85)
    return c
