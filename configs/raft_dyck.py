"""Reward-ranked fine-tuning on brackets: complete six to a balanced text of sixteen, from eighty labelled examples.

    python main.py --config=configs/raft_dyck.py --workdir=runs/raft_dyck

Every prompt has many right answers, so cycles are compared by samples, and what must not be lost is their variety.
Expected result: 38 to 52 % of held-out samples right after 8 cycles, from 17 to 39 % (experiments/LOG.md).
"""

from ml_collections import ConfigDict

from configs import raft


def get_config() -> ConfigDict:
    c = raft.get_config()
    c.model.seq_len = 32
    c.raft.update(task="dyck", size=16, sft_examples=80, prompts=160, held_out=160)
    c.raft.update(sft_epochs=150, temperature=1.0, score="sampled", held_out_samples=8)
    c.raft.lr_base = 1.0  # At the 4.0 of configs/raft.py runs swing by 15 points and are rolled back.
    return c
