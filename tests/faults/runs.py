"""What the tests of faults share: a short run, its hash, and what two equal runs have in common."""

import json
from pathlib import Path

from experiments.soak import training_records
from fftlm_jax.checkpoints.saved_step import temporary_folders
from tests.tiny import ROOT, hash_of, tiny_values


def short_values(**overrides):
    """A run of 20 steps without samples: raises after 6 and 12, evaluations after 10 and 20, saves every 5 steps.

    Its corpus is one short file, which takes no time to read.
    """
    fixed = {
        "data__path": str(ROOT / "configs" / "aligned.py"),
        "sample__bytes": 0,
        "eval__every": 10,
        "eval__before_raise": False,
    }
    return tiny_values(**{**fixed, **overrides})


def records_of(workdir: Path) -> list[dict]:
    """What a run's metrics say of training, without times: equal for equal runs, however often they were resumed."""
    return training_records(workdir / "metrics.jsonl")


def assert_equal_runs(workdir: Path, reference: Path) -> None:
    """The same state, the same records, whole lines, and nothing temporary."""
    assert hash_of(workdir) == hash_of(reference)
    assert records_of(workdir) == records_of(reference)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert temporary_folders(workdir / "checkpoints") == []
