"""The keys of a run: training, evaluation, checkpoints, samples, data, devices and profiling."""

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
        "The corpus: python_stdlib (this Python's standard library), files (path), or a text of `fftlm download`.",
        one_of("python_stdlib", "files", "enwik8", "text8", "tinyshakespeare"),
    )
    path: str = key("", "A file, a folder or a glob, also .gz, .bz2, .xz, .zst, .zip, .jsonl, .parquet; implies files.")
    held_out: float = key(
        0.1,
        "Fraction held out: of a file its end, of many files by a hash of their names, of documents by one of theirs.",
        above(0),
        from_zero_below(1),
        resume=ASKED,
    )
    text_field: str = key(
        "text",
        'Field (.jsonl) or column (.parquet) that holds documents; "" reads these files as bytes.',
        is_later=True,
    )
    separator: str = key("\n\n", "Bytes between documents.", is_later=True)
    cache: str = key(
        "auto",
        "Folder of what is unpacked and downloaded; auto: fftlm_jax/texts in the user's cache folder.",
        is_later=True,
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
