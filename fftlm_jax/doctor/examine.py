"""Tells whether a run trains well: applies the doctor's rules to a run, finished or under way, or to a text log.

    fftlm doctor runs/quickstart
    fftlm doctor old_log.txt --lr=2e-4

Prints warnings, healthy signs and notes, each with its evidence, and for a warning the one thing to change. A text log
is one in the source documents' format (see text_log.py); what it does not tell is taken from their command. The exit
code says whether the run could be read (0, else 1 or 4), not how it does. A run under way says each warning once.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from fftlm_jax.checkpoints.saved_run import open_config
from fftlm_jax.config.schema import Config
from fftlm_jax.doctor import diagnose
from fftlm_jax.doctor.evidence import HEALTHY, NOTE, WARNING, Finding, facts_of
from fftlm_jax.doctor.rules_config import advice
from fftlm_jax.doctor.text_log import DOCUMENTS_LR, read_text_log
from fftlm_jax.recording.console import Console
from fftlm_jax.recording.history import History
from fftlm_jax.recording.metrics import MetricsLog, read_metrics, read_samples
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.process import CommandParser, run_command


def examine(path: Path, base_lr: float = DOCUMENTS_LR) -> list[Finding]:
    """All findings about a run directory or a text log.

    Args:
        path: of either.
        base_lr: peak learning rate of a text log.

    Raises:
        RunError: if it is neither, or nothing is recorded there.
    """
    if not path.is_dir():
        log = read_text_log(path, base_lr)
        return diagnose(History(log.records), log.facts)
    directory, config = open_config(path)
    if not directory.metrics.is_file():
        raise UsageError(f"{path} holds a run that has not begun; let it train, or name another or a text log.")
    history = History(read_metrics(directory.metrics))
    if not len(history.train):
        raise UsageError(f"{path}: no step is recorded yet; ask again later.")
    return diagnose(history, facts_of(config), read_samples(directory.samples))


def report(findings: Iterable[Finding]) -> str:
    """The findings as text: warnings first, then healthy signs, then notes."""
    found = list(findings)
    lines = []
    for severity in (WARNING, HEALTHY, NOTE):
        for finding in (f for f in found if f.severity == severity):
            lines.append(f"{severity}: {finding.rule}, step {finding.step}")
            lines.append(f"    {finding.text}")
            evidence = ", ".join(f"{name}={value:.4g}" for name, value in finding.evidence.items())
            lines.append(f"    evidence: {evidence}")
            if finding.change:
                lines.append(f"    change: {finding.change}")
    counts = {severity: sum(f.severity == severity for f in found) for severity in (WARNING, HEALTHY)}
    lines.append(f"{counts[WARNING]} warnings, {counts[HEALTHY]} healthy signs")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("fftlm doctor", __doc__)
    parser.add_run("run directory or text log")
    parser.add_argument(
        "--lr", type=float, default=DOCUMENTS_LR, help="peak learning rate of a text log (default: the documents')"
    )
    args = parser.parse_args(arguments)
    if not 0 < args.lr < math.inf:
        parser.error(f"--lr: a peak learning rate is a finite number above 0, not {args.lr}")
    return run_command(lambda: print(report(examine(Path(args.workdir), args.lr))))


class Watch:
    """Says what the rules find on the console, in `metrics.jsonl` and in TensorBoard.

    What was said already is read from the records that the rules read. These are truncated to the restored step on
    resume, so a resumed run says what a straight one does.
    """

    def __init__(self, config: Config, log: MetricsLog, console: Console) -> None:
        self._config = config
        self._facts = facts_of(config)
        self._log = log
        self._console = console

    def begin(self) -> None:
        """Advice about the config, before the first step."""
        for finding in advice(self._config):
            self._console.say(words(finding))
            if finding.severity == WARNING:
                self._record(0, finding)

    def look(self, done: int, samples: Sequence[tuple[int, str]]) -> None:
        """Applies the rules to all that was recorded so far, and says the warnings that are new."""
        said = {(r.get("rule"), r.get("at")) for r in self._log.history.warnings}
        for finding in diagnose(self._log.history, self._facts, samples):
            if finding.severity == WARNING and (finding.rule, finding.step) not in said:
                self._console.say(words(finding))
                self._record(done, finding)

    def _record(self, done: int, finding: Finding) -> None:
        values = {"rule": finding.rule, "at": finding.step, "text": finding.text, "change": finding.change}
        self._log.text("warning", done, words(finding))
        self._log.write("event", done, event="warning", **values, evidence=finding.evidence)


def words(finding: Finding) -> str:
    """A finding in one line."""
    sign = "⚠ " if finding.severity == WARNING else ""
    change = f". Change {finding.change}" if finding.change else ""
    return f"{sign}{finding.rule}: {finding.text}{change}"
