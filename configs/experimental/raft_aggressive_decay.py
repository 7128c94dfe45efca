"""The source card's experiment, aggressive decay (0.70): `raft_constant_lr.py` but for the learning rate of its cycles.

    python main.py --config=configs/experimental/raft_aggressive_decay.py --workdir=runs/raft_aggressive_decay

What came of it is in experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs.experimental import raft_constant_lr


def get_config() -> ConfigDict:
    c = raft_constant_lr.get_config()
    c.raft.update(lr="exponential", lr_decay=0.70)
    return c
