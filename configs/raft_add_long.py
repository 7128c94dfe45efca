"""Reward-ranked fine-tuning on longer and longer sums: labelled up to three digits, then one more when it is mastered.

    python main.py --config=configs/raft_add_long.py --workdir=runs/raft_add_long

Self-improvement from easy to hard (Lee et al. 2025, arXiv 2502.01612); a verifier takes the place of the majority.
Expected result: not known; it was never run to its end.
"""

from ml_collections import ConfigDict

from configs import raft


def get_config() -> ConfigDict:
    c = raft.get_config()
    c.model.update(seq_len=64, kernel_len=32)
    c.raft.update(task="add_long", size=10, first_level=3, sft_examples=2000, prompts=4000, held_out=1000)
    c.raft.update(sft_epochs=20, cycles=16, temperature=1.0, samples=4, per_prompt=2, held_out_samples=1)
    return c
