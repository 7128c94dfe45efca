"""Rules that watch a run: pure functions of its records, each with a finding, its evidence and one thing to change.

Every rule takes the stream of records and the facts of the config, and states what noise it allows for, so that a
healthy run hears next to nothing. Findings depend on records alone, so a resumed run finds what a straight one does.
"""

from collections.abc import Iterable
from types import FunctionType

from fftlm_jax.doctor import rules_health, rules_loss, rules_raises
from fftlm_jax.doctor.evidence import HEALTHY, NOTE, WARNING, Facts, Finding, facts_of, read_stream
from fftlm_jax.recording.history import History

_MODULES = (rules_loss, rules_raises, rules_health)  # In the order in which findings of one step are told.
RULES = tuple(
    f for module in _MODULES for f in vars(module).values() if isinstance(f, FunctionType) and hasattr(f, "warnings")
)
WARNINGS = tuple(name for function in RULES for name in function.warnings)


def diagnose(history: History, facts: Facts, samples: Iterable[tuple[int, str]] = ()) -> list[Finding]:
    """Applies all rules to what a run has recorded so far; returns the findings in the order of their steps.

    A run with a loss that is not finite shows no healthy sign, whatever else it did.

    Args:
        history: the records of the run.
        facts: of its config.
        samples: (updates done, text) of what the model wrote, in order.
    """
    stream = read_stream(history, samples)
    findings = [finding for rule in RULES for finding in rule(stream, facts)]
    if len(stream.not_finite):
        findings = [finding for finding in findings if finding.severity != HEALTHY]
    return sorted(findings, key=lambda finding: finding.step)
