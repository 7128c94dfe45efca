"""A fine-tuning run of two cycles that takes a second, what it leaves on disk, and the deaths that it must survive."""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from configs import raft as shipped
from fftlm_jax.raft.journal import Journal
from fftlm_jax.runtime import faults
from tests.tiny import tiny_values


def raft_values(**overrides):
    """One-digit addition with a model that hardly learns it; overrides are dotted keys with `__` for the dot."""
    c = tiny_values()
    c.task = "raft"
    c.model.update(seq_len=16, kernel_len=8, d_model=32, n_layers=1, chunk=1)
    c.objective.name = "next_byte"
    c.curriculum.rule = "none"
    # Few supervised steps, after which something is right: 1 of the held-out sums, and 2 after the first cycle.
    c.raft.update(size=1, sft_examples=30, prompts=30, held_out=15, sft_epochs=25, sft_lr=3e-2)
    c.raft.update(cycles=2, lora_rank=2, samples=4, rows=32, batch_size=16, held_out_samples=2, min_steps=3)
    for dotted, value in overrides.items():
        section, _, key = dotted.rpartition("__")
        target = c[section] if section else c
        target[key] = value
    return c


def shipped_values():
    """`configs/raft.py`, made as small: programs are those of `raft_values`. Its supervised part takes a second."""
    c = shipped.get_config()
    c.model.update(kernel_len=8, d_model=32, n_layers=1, conv_heads=4)
    c.raft.update(size=1, sft_examples=30, prompts=30, held_out=15, sft_epochs=75, sft_lr=3e-2)
    c.raft.update(cycles=2, lora_rank=2, samples=4, rows=32, batch_size=16, held_out_samples=2, temperature=1.0)
    c.checkpoint.every = 5
    return c


def journal_hashes(workdir: Path) -> dict[str, str]:
    """SHA-256 of every file of the journal, by its path."""
    root = workdir / "cycles"
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def copy_until(finished: Path, folder: Path, cycle: int, phases: Collection[str] | None = None) -> Path:
    """A copy of a finished run as if it had died in this cycle, with these phases of it done (by default all)."""
    shutil.copytree(finished, folder)
    for done in (*(folder / "cycles").iterdir(), *(folder / "checkpoints").iterdir()):
        if int(done.name) > cycle:
            shutil.rmtree(done)
    if phases is not None:
        listing = Journal(folder).folder(cycle) / "phases.json"
        known = json.loads(listing.read_text())
        for name in set(known) - set(phases):
            (listing.parent / name).unlink()
        listing.write_text(json.dumps({name: known[name] for name in known if name in phases}))
    return folder


# Phases of the run, by cycle.
PHASES = (
    *((0, name) for name in ("plan.json", "weights.npz", "result.json")),
    *(
        (1, name)
        for name in ("plan.json", "samples.jsonl", "verdicts.jsonl", "kept.jsonl", "weights.npz", "result.json")
    ),
    *((2, name) for name in ("samples.jsonl", "weights.npz", "result.json")),
)
# What a death may leave of a phase: half of its file, the whole of it that nothing lists yet, or the phase done.
WAYS_TO_DIE = ("half-written", "not yet listed", "listed")


class Killed(BaseException):
    """Stands for a process that ends without a word."""


def die(monkeypatch, run: Callable[[], object], cycle: int, name: str, how: str) -> None:
    """Runs until it dies in this phase of this cycle; it has to."""
    once = Journal.once

    def killing(self, at, phase, make):
        if (at, phase) != (cycle, name):
            return once(self, at, phase, make)
        if how == "half-written":
            self.folder(at).mkdir(parents=True, exist_ok=True)
            (self.folder(at) / phase).write_bytes(make()[:-3])
        else:
            once(self, at, phase, make)
        raise Killed

    with monkeypatch.context() as patch:
        if how == "not yet listed":
            faults.arm(f"stop@{place_of(name)}:{cycle}")
        else:
            patch.setattr(Journal, "once", killing)
        try:
            run()
        except (Killed, faults.Stopped):
            return
        finally:
            faults.arm("")
    raise AssertionError(f"it did not die in {name} of cycle {cycle}, {how}")


def place_of(name: str) -> str:
    """What `fftlm_jax.runtime.faults` calls the place behind a phase's file."""
    return f"raft_{Path(name).stem}"
