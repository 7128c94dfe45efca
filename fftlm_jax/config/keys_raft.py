"""The keys of fine-tuning (section raft)."""

import dataclasses

from fftlm_jax.config.limits import FIXED, above, at_least, between, from_zero_below, key, one_of, within


@dataclasses.dataclass(frozen=True)
class RaftConfig:
    """Reward-ranked fine-tuning: task, cycles, adapters, selection, learning rates."""

    task: str = key(
        "add",
        "The task: add 12+07=019, add_long (1 to size digits), sort 31524>12345, dyck (brackets) or countdown.",
        resume=FIXED,
    )
    size: int = key(
        2,
        "Digits (add, add_long, sort), length in bytes (dyck), given numbers (countdown).",
        between(1, 2**10),
        resume=FIXED,
    )
    reversed_answer: bool = key(False, "Whether answers of add begin with their last digit.", resume=FIXED)
    sft_examples: int = key(300, "Labelled problems of supervised fine-tuning.", between(1, 2**24), resume=FIXED)
    prompts: int = key(1500, "Problems without labels that cycles sample from.", between(1, 2**24), resume=FIXED)
    held_out: int = key(
        1000, "Problems that no training sees: what cycles are compared by.", between(1, 2**24), resume=FIXED
    )
    first_level: int = key(
        1, "Digits that labelled problems of add_long have at most.", between(1, 2**10), resume=FIXED
    )
    level_rate: float = key(
        0.5, "Share of right samples of the hardest level at which cycles go one digit further.", within(0, 1)
    )
    sft_epochs: int = key(50, "Passes over the labelled problems; 0 for none.", between(0, 2**20))
    sft_lr: float = key(
        0.002,
        "Peak rate of supervised fine-tuning, after a tenth of its steps; then it falls to 0 in a line.",
        above(0),
    )
    sft_trained: str = key(
        "full",
        "What supervised fine-tuning trains: all weights (full), or adapters (lora; merged before cycle 1).",
        one_of("full", "lora"),
    )
    cycles: int = key(8, "Cycles of sample, verify, keep and train.", between(0, 2**16))
    trained: str = key(
        "lora",
        "What cycles train: adapters with AdamW (lora), or all weights with optim.name (full).",
        one_of("full", "lora"),
        resume=FIXED,
    )
    lora_rank: int = key(16, "Rank of the adapters (r).", between(1, 2**12), resume=FIXED)
    lora_alpha: float = key(32.0, "Adapters are scaled by lora_alpha / lora_rank.", above(0), resume=FIXED)
    lora_dropout: float = key(
        0.0, "Chance that an input of an adapter is hidden in a step.", from_zero_below(1), resume=FIXED
    )
    lora_targets: tuple = key(
        ("w_in", "w_gate", "w_out", "w_up", "w_down"), "Matrices that carry adapters.", resume=FIXED
    )
    samples: int = key(8, "Completions per prompt and cycle.", between(1, 2**16))
    temperature: float = key(1.0, "Temperature of the completions.", at_least(0))
    top_p: float = key(
        1.0, "Keep the likeliest bytes of this total probability in completions.", within(0, 1), above(0)
    )
    rows: int = key(256, "Completions that are sampled side by side.", between(1, 2**20))
    filter: str = key(
        "verified",
        "What is kept: what the verifier accepts (verified), or as many at random (random, the control).",
        one_of("verified", "random"),
    )
    per_prompt: int = key(4, "Different kept completions per prompt, at most.", between(1, 2**16))
    drop_solved: bool = key(False, "Whether to leave out prompts whose every completion was right.")
    budget: int | tuple = key(
        0, "Kept completions per cycle, at most: a number, or one per cycle, the last one held; 0 for all."
    )
    start: str = key(
        "continue",
        "Where a cycle starts: continue, restart or merge.",
        one_of("continue", "restart", "merge"),
        resume=FIXED,
    )
    anchor: float = key(0.0, "Share of labelled problems mixed into what a cycle trains on.", from_zero_below(1))
    batch_size: int = key(128, "Answers per step.", between(1, 2**20))
    accum_steps: int = key(
        1,
        "Micro-batches that the answers of a step are cut into; must divide batch_size.",
        between(1, 2**20),
        is_later=True,
    )
    epochs: int = key(3, "Passes of a cycle over what was kept.", between(1, 2**20))
    min_steps: int = key(5, "Steps of a cycle, at least, by more passes.", between(1, 2**24))
    max_epochs: int = key(10, "Passes of a cycle, at most.", between(1, 2**20))
    lr: str = key(
        "constant",
        "Rate over cycles: constant, exponential, step, wsd, manual or adaptive (see raft/cycle_lr.py).",
        one_of("constant", "exponential", "step", "wsd", "manual", "adaptive"),
    )
    lr_base: float = key(1.0, "Rate of the first cycle, in lr_unit.", above(0))
    lr_unit: str = key("sft_lr", "Unit of lr_base: multiples of sft_lr, or absolute.", one_of("sft_lr", "absolute"))
    lr_decay: float = key(
        0.85, "Factor per cycle (exponential), or per lr_every cycles (step).", above(0), within(0, 1)
    )
    lr_every: int = key(2, "Cycles that share a rate under step.", between(1, 2**16))
    lr_warmup_cycles: int = key(2, "Cycles in which the rate of wsd rises.", between(0, 2**16))
    lr_stable_cycles: int = key(2, "Cycles in which the rate of wsd stays at its peak.", between(0, 2**16))
    lr_fall_cycles: int = key(4, "Cycles in which the rate of wsd falls.", between(0, 2**16))
    lr_final: float = key(0.2, "Fraction of its peak that the rate of wsd falls to.", above(0), within(0, 1))
    lr_rates: tuple = key((), "Absolute rates of the first cycles under manual; the last one is held.")
    lr_floor: float = key(1e-06, "Rate that no cycle is below.", at_least(0))
    lr_yaml: str = key("", "A YAML file, or its text, with a schedule in absolute rates, in place of raft.lr.")
    warmup: int = key(0, "Steps of a cycle in which the rate rises, at most a tenth of them.", between(0, 2**24))
    decay_within: bool = key(False, "Whether the rate falls to 0 in a line within a cycle, after its warm-up.")
    score: str = key(
        "greedy",
        "What cycles are compared by: right answers at temperature 0 (greedy), or among samples (sampled).",
        one_of("greedy", "sampled"),
    )
    held_out_samples: int = key(4, "Completions per held-out prompt.", between(1, 2**16), resume=FIXED)
    on_regress: str = key(
        "rollback",
        "Where the held-out rate falls 2 standard errors below the best: continue, rollback or stop.",
        one_of("continue", "rollback", "stop"),
    )
    regress_factor: float = key(0.7, "Multiplied into the rate at each rollback.", above(0), within(0, 1))
    rollbacks: int = key(2, "Rollbacks, at most.", between(0, 2**16))
