"""Errors that end a run, each with its exit code. Their messages are whole sentences, printed without a traceback.

0 finished, 1 usage, config or data, 3 non-finite numbers, 4 checkpoint unusable or resume mismatch, 5 run directory in
use, 6 cannot save, 128 + n saved after signal number n (130 SIGINT, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1, 141 where
nobody reads standard output any more).
"""


class RunError(Exception):
    """Base of the errors that are the user's to mend: says what is wrong and how to go on."""

    exit_code = 1


class UsageError(RunError):
    """A command, a config or data that cannot be used."""


class ConfigError(UsageError):
    """A config that cannot be run. `faults` holds one sentence per fault: field, what is wrong, the fix."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class DataError(UsageError):
    """A corpus that is missing, unreadable or too short."""


class NonFiniteError(RunError):
    """A loss or gradient that is NaN or infinite; the update was not made."""

    exit_code = 3


class CheckpointError(RunError):
    """A checkpoint that cannot be used, or a run that the given config does not continue."""

    exit_code = 4


class InUseError(RunError):
    """Another process works in the run directory."""

    exit_code = 5


class SaveError(RunError):
    """The run directory cannot be written."""

    exit_code = 6


class Interrupted(RunError):
    """A signal that ends a process arrived; the step was finished and saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
