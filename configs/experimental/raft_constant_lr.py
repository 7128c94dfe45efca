"""The source card's experiment, baseline (no decay); its two siblings differ in the learning rate of their cycles.

    python main.py --config=configs/experimental/raft_constant_lr.py --workdir=runs/raft_constant_lr

The base rate is a multiple of the supervised one: the card's absolute 5e-5 belongs to another model. All values are
hypotheses; what came of them is in experiments/LOG.md.
"""

from ml_collections import ConfigDict

from configs import raft


def get_config() -> ConfigDict:
    c = raft.get_config()
    c.raft.update(lr="constant")
    c.raft.on_regress = "continue"  # The question is what the schedule does when nobody steps in.
    return c
