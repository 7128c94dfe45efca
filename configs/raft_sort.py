"""Reward-ranked fine-tuning on sorting five digits, from two hundred labelled examples.

    python main.py --config=configs/raft_sort.py --workdir=runs/raft_sort

Expected result: 27 to 59 % of held-out problems right after 8 cycles, from 10 to 17 % (experiments/LOG.md).
"""

from ml_collections import ConfigDict

from configs import raft


def get_config() -> ConfigDict:
    c = raft.get_config()
    c.raft.update(task="sort", size=5, sft_examples=200, prompts=600, held_out=600)
    c.raft.update(sft_epochs=60, temperature=1.0)
    return c
