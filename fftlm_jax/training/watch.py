"""The rules of `diagnostics` at work on a run under way: each warning is said once, and decided by records alone."""

from collections.abc import Sequence

from fftlm_jax.config import Config
from fftlm_jax.training.advice import advice
from fftlm_jax.training.console import Console
from fftlm_jax.training.diagnostics import WARNING, Finding, diagnose, facts_of
from fftlm_jax.training.metrics import MetricsLog, Record


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

    def look(self, done: int, records: Sequence[Record], samples: Sequence[tuple[int, str]]) -> list[Record]:
        """Applies the rules to all records so far; returns the records of the warnings that are new."""
        said = {(r["rule"], r["at"]) for r in records if r.get("event") == "warning"}
        findings = diagnose(records, self._facts, samples)
        new = [f for f in findings if f.severity == WARNING and (f.rule, f.step) not in said]
        for finding in new:
            self._console.say(words(finding))
        return [self._record(done, finding) for finding in new]

    def _record(self, done: int, finding: Finding) -> Record:
        values = {"rule": finding.rule, "at": finding.step, "text": finding.text, "change": finding.change}
        self._log.text("warning", done, words(finding))
        return self._log.write("event", done, event="warning", **values, evidence=finding.evidence)


def words(finding: Finding) -> str:
    """A finding in one line."""
    sign = "⚠ " if finding.severity == WARNING else ""
    change = f". Change {finding.change}" if finding.change else ""
    return f"{sign}{finding.rule}: {finding.text}{change}"
