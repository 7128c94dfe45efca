"""Rules between the keys of reward-ranked fine-tuning (task "raft"); as those of `config_rules.py`."""

import math
from collections.abc import Iterator
from typing import Any

from fftlm_jax.untrusted import shown


def raft_faults(config: Any) -> Iterator[str]:
    """Every sentence about a config of task "raft" that cannot run."""
    yield from _base(config)
    yield from _training(config)
    yield from _schedule(config.raft)


def _base(config: Any) -> Iterator[str]:
    raft, has_base = config.raft, bool(config.init.checkpoint)
    if config.curriculum.rule != "none":
        yield "config.curriculum.rule: fine-tuning keeps the cutoff of the weights it starts from; set it to 'none'."
    if config.curriculum.method == "signal":
        yield "config.curriculum.method: answers are scored inside the window, which a signal mask lets see its future."
    if config.objective.name != "next_byte":
        yield "config.objective.name: answers are learned and written byte by byte; set it to 'next_byte'."
    if raft.sft_trained == "lora" and not has_base:
        yield "config.raft.sft_trained: adapters on random weights learn little; name an init.checkpoint or use 'full'."
    if raft.sft_epochs == 0 and not has_base:
        yield "config.raft.sft_epochs: random weights answer nothing; train them, or name an init.checkpoint."
    if config.optim.name == "muon" and "full" not in (raft.trained, raft.sft_trained):
        yield "config.optim.name: adapters are trained with AdamW; use 'adamw', or train all weights ('full')."
    if config.optim.ema_decay:
        yield "config.optim.ema_decay: fine-tuning keeps no average of the weights; set it to 0."


def _training(config: Any) -> Iterator[str]:
    raft = config.raft
    if not raft.lora_targets or not all(isinstance(name, str) for name in raft.lora_targets):
        yield f"config.raft.lora_targets: {shown(raft.lora_targets)} must name matrices, such as ('w_in', 'w_out')."
    if raft.max_epochs < raft.epochs:
        yield f"config.raft.max_epochs: {raft.max_epochs} is less than epochs {raft.epochs}; raise it."
    budgets = raft.budget if isinstance(raft.budget, tuple) else (raft.budget,)
    if not budgets or not all(isinstance(b, int) and not isinstance(b, bool) and b >= 0 for b in budgets):
        yield f"config.raft.budget: {shown(raft.budget)} must be a whole number of at least 0, or one per cycle."
    if raft.reversed_answer and raft.task != "add":
        yield f"config.raft.reversed_answer: is for task 'add', not for {raft.task!r}; set it to False."
    if raft.temperature == 0 and raft.samples > 1:
        yield "config.raft.temperature: at 0 all samples of a prompt are the same; raise it, or take one sample."
    if raft.trained == "full" and raft.start == "merge":
        yield "config.raft.start: 'merge' belongs to adapters; all weights train on with 'continue'."


def _schedule(raft: Any) -> Iterator[str]:
    bad = [rate for rate in raft.lr_rates if not _is_rate(rate)]
    if bad:
        yield f"config.raft.lr_rates: {shown(bad[0])} is no learning rate; write numbers above 0."
    if raft.lr == "manual" and not raft.lr_rates:
        yield "config.raft.lr_rates: is empty; raft.lr 'manual' needs the rates of the first cycles."
    if raft.lr_rates and raft.lr != "manual":
        yield f"config.raft.lr_rates: raft.lr {raft.lr!r} is another schedule; keep one of the two."
    if raft.lr_yaml and (raft.lr != "constant" or raft.lr_rates):
        other = "lr_rates" if raft.lr_rates else f"lr {raft.lr!r}"
        yield f"config.raft.lr_yaml: raft.{other} is another schedule; keep one of the two (raft.lr='constant')."


def _is_rate(value: Any) -> bool:
    """Whether a value is a number above 0, or the text of one."""
    try:
        return not isinstance(value, bool) and 0 < float(value) < math.inf
    except (TypeError, ValueError):
        return False
