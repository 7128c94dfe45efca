"""A fine-tuning run of two cycles that takes seconds, and what it leaves on disk."""

import hashlib
from pathlib import Path

from tests.tiny import tiny_values


def raft_values(**overrides):
    """One-digit addition with a model that hardly learns it; overrides are dotted keys with `__` for the dot."""
    c = tiny_values()
    c.task = "raft"
    c.model.update(seq_len=16, kernel_len=8, d_model=32, n_layers=1, chunk=1)
    c.objective.name = "next_byte"
    c.curriculum.rule = "none"
    c.raft.update(size=1, sft_examples=30, prompts=30, held_out=15, sft_epochs=80, sft_lr=1e-2)
    c.raft.update(cycles=2, lora_rank=2, samples=4, rows=32, batch_size=16, held_out_samples=2, min_steps=3)
    for dotted, value in overrides.items():
        section, _, key = dotted.rpartition("__")
        target = c[section] if section else c
        target[key] = value
    return c


def journal_hashes(workdir: Path) -> dict[str, str]:
    """SHA-256 of every file of the journal, by its path."""
    root = workdir / "cycles"
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }
