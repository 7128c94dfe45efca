"""The keys of a run: training, evaluation, checkpoints, samples, data, devices, profiling, and fine-tuning (raft)."""

import dataclasses
import re
from typing import ClassVar

from fftlm_jax.config.limits import ASKED, FIXED, FREE, above, at_least, between, from_zero_below, key, one_of, within

_MOST = 2**31 - 1  # Of what is counted in int32 on the device.


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The batch, and how long training lasts."""

    batch_size: int = key(4, "Windows per micro-batch.", between(1, 2**24))
    accum_steps: int = key(8, "Micro-batches per optimizer step.", between(1, 2**20))
    batch_stages: tuple = key((1,), "Multiples of accum_steps, in as many equal stages of training.")
    steps_per_epoch: int = key(1000, 'Optimizer steps that make an "epoch".', between(1, _MOST))
    epochs: int = key(50, "Epochs of the whole training.", between(1, _MOST))
    skip_nonfinite: int = key(
        0,
        "Steps in a row with a NaN or infinite loss or gradient that are passed over; one more ends the run.",
        between(0, _MOST),
    )
    log_every: int = key(
        10,
        "Steps between console lines and TensorBoard points; metrics.jsonl has every step.",
        between(1, _MOST),
        resume=FREE,
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on held-out text."""

    on_resume: ClassVar[str] = FREE
    every: int = key(1000, "Steps between evaluations; the last step is always evaluated.", between(1, _MOST))
    before_raise: bool = key(
        True, "Whether to evaluate just before every raise too, so that each cutoff's last state is on record."
    )
    batch_size: int = key(8, "Windows per forward pass.", between(1, 2**24))
    max_bytes: int = key(
        262144,
        "Bytes of the held-out part that are scored, from its beginning; 0 for all.",
        between(0, 2**40),
        resume=ASKED,
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    on_resume: ClassVar[str] = FREE
    every: int = key(500, "Steps between checkpoints; the last step is always saved.", between(1, _MOST))
    keep_last: int = key(2, "Newest checkpoints kept, at least 2: the newest may be cut short.", between(2, _MOST))
    keep_best: int = key(
        1, "Checkpoints of lowest bpb kept besides; an evaluation that is the best yet is saved.", between(0, _MOST)
    )
    retries: int = key(2, "Saves in a row that may fail, as on a full disk, before the run ends.", between(0, _MOST))


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What a model writes at each evaluation."""

    on_resume: ClassVar[str] = FREE
    prompt: str = key("def ", "Text that the samples in samples.txt continue.")
    bytes: int = key(128, "Length of the sample written at each evaluation; 0 for none.", between(0, 2**24))
    mode: str = key(
        "byte",
        "How samples are decoded: byte by byte, a chunk at once, or speculative (as byte, in fewer passes).",
        one_of("byte", "chunk", "speculative"),
    )
    temperature: float = key(0.8, "Temperature of sampling; 0 is greedy.", at_least(0))
    top_k: int = key(0, "Keep the k likeliest bytes; 0 keeps all.", within(0, 256))
    top_p: float = key(0.95, "Keep the likeliest bytes of this total probability.", within(0, 1), above(0))
    min_p: float = key(
        0.0, "Keep the bytes at least this many times as probable as the likeliest; 0 keeps all.", within(0, 1)
    )
    repetition_penalty: float = key(
        1.0, "Above 1, bytes among the last repetition_window become less likely.", above(0)
    )
    repetition_window: int = key(64, "Last bytes that repetition_penalty looks at.", between(1, 2**24))
    longest_run: int = key(0, "Times that a byte may stand in a row; 0 for no limit.", between(0, 2**24))
    ascii_only: bool = key(False, "Whether to write nothing but printable ASCII, tabs and newlines.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpus."""

    on_resume: ClassVar[str] = FREE
    source: str = key(
        "python_stdlib",
        "The corpus: python_stdlib (this Python's standard library) or files (path).",
        one_of("python_stdlib", "files"),
    )
    path: str = key("", "A file, a folder or a glob; if set, the source is files.")
    held_out: float = key(
        0.1,
        "Fraction held out: of a single file its end, of many files by a hash of their names.",
        above(0),
        from_zero_below(1),
        resume=ASKED,
    )


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Weights to start from."""

    on_resume: ClassVar[str] = FIXED
    checkpoint: str = key("", "Run directory (or checkpoints/<step> in it) whose weights to start from.")
    epoch: int = key(
        0,
        "Age in epochs of weights without controller state: bounds the starting cutoff from below.",
        between(0, _MOST),
    )


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """What is done with a run that is there already."""

    on_resume: ClassVar[str] = FREE
    mode: str = key(
        "auto",
        "auto: resume what is there; never: refuse a non-empty folder; must: refuse an empty one.",
        one_of("auto", "never", "must"),
    )
    allow: tuple = key((), 'What may change on resume: keys or whole sections, such as ("lr", "train.epochs", "data").')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices of a run."""

    on_resume: ClassVar[str] = FREE
    data: int = key(
        -1,
        "Devices along the batch; -1 for all that mesh.fsdp leaves.",
        lambda v: None if v == -1 or v >= 1 else "must be at least 1, or -1 for all devices that are left",
    )
    fsdp: int = key(
        1, "Devices that large parameters, and what the optimizer keeps of them, are sharded over.", at_least(1)
    )
    fsdp_min_size: int = key(
        65536, "Entries from which a parameter is large; smaller ones lie whole on every device.", at_least(1)
    )


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes of a run."""

    on_resume: ClassVar[str] = FREE
    coordinator: str = key(
        "",
        'host:port of process 0; "auto" where jax finds it (Slurm, TPU pods); "" for one process.',
        lambda v: None if v in ("", "auto") or re.fullmatch(r".+:\d+", v) else "must be host:port, 'auto' or ''",
    )
    processes: int = key(1, "How many processes there are, with host:port.", at_least(1))
    process_id: int = key(0, "Which of them this is, from 0, with host:port.", at_least(0))
    heartbeat: int = key(
        100, "Seconds of silence after which a process counts as dead, and the others end.", at_least(1)
    )


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """The window that the profiler traces."""

    on_resume: ClassVar[str] = FREE
    start: int = key(10, "First step of the profiler window (trace under <workdir>/profile).", between(0, _MOST))
    steps: int = key(0, "Length of the profiler window in steps; 0 for none.", between(0, _MOST))


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
