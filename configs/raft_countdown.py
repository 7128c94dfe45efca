"""Reward-ranked fine-tuning on reaching a number with given ones: 3 5 8>24=3*8.

    python main.py --config=configs/raft_countdown.py --workdir=runs/raft_countdown

Problems have many right answers. Expected result: not known; it was never run to its end.
"""

from ml_collections import ConfigDict

from configs import raft


def get_config() -> ConfigDict:
    c = raft.get_config()
    c.model.seq_len = 32
    c.raft.update(task="countdown", size=3, sft_examples=1000, prompts=2000, held_out=1000, score="sampled")
    c.raft.update(sft_epochs=30, temperature=1.0)
    return c
