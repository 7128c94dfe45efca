"""Opens a fine-tuning run for reading: its config and the results of the cycles that are done."""

from pathlib import Path

from fftlm_jax.config import Config
from fftlm_jax.errors import UsageError
from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.raft.journal import Journal
from fftlm_jax.training.saved_run import open_config


def open_run(workdir: str | Path) -> tuple[Config, list[CycleResult]]:
    """Config and results, cycle 0 first.

    Raises:
        RunError: if there is no such run, or nothing of it is done, or its files were changed.
    """
    directory, config = open_config(workdir)
    if config.task != "raft":
        raise UsageError(f"{directory.root} is a run of task {config.task!r}; name one of task 'raft'.")
    journal = Journal(directory.root)
    results = journal.results()[: journal.finished()]
    if not results:
        raise UsageError(f"{directory.root}: no cycle is done yet, not even the supervised one; let it run on.")
    return config, results
