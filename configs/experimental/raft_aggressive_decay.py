"""The source card's experiment, aggressive decay (0.70): as its two siblings but for the learning rate of the cycles.

    python main.py --config=configs/experimental/raft_aggressive_decay.py --workdir=runs/raft_aggressive_decay

The base rate is a multiple of the supervised one: the card's absolute 5e-5 belongs to another model. All values are
hypotheses; what came of them is in experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import raft


def get_config() -> ConfigDict:
    c = raft.get_config()
    c.raft.update(lr="exponential", lr_decay=0.70)
    c.raft.on_regress = "continue"  # The question is what the schedule does when nobody steps in.
    return c
