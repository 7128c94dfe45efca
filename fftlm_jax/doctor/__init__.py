"""Rules that watch a run: pure functions of its records, each with a finding, its evidence and one thing to change.

Every rule takes the stream of records and the facts of the config, and states what noise it allows for, so that a
healthy run hears next to nothing. Findings depend on records alone, so a resumed run finds what a straight one does.
"""

from collections.abc import Iterable

from fftlm_jax.doctor.evidence import HEALTHY, NOTE, WARNING, Facts, Finding, facts_of, read_stream
from fftlm_jax.doctor.rules_health import clipped_gradients, overfitting, repetitive_samples, tiny_gradients
from fftlm_jax.doctor.rules_loss import low_learning_rate, oscillation, recovery, slow_descent, smooth_descent
from fftlm_jax.doctor.rules_raises import no_raise, noise_note, raise_pace, threshold_in_noise
from fftlm_jax.recording.history import History

RULES = (
    oscillation,
    recovery,
    low_learning_rate,
    smooth_descent,
    slow_descent,
    raise_pace,
    no_raise,
    threshold_in_noise,
    clipped_gradients,
    tiny_gradients,
    overfitting,
    repetitive_samples,
    noise_note,
)
# The names of all warnings that they give.
WARNINGS = (
    "oscillation",
    "unrecovered_spike",
    "low_learning_rate",
    "slow_descent",
    "raises_every_epoch",
    "no_raise",
    "threshold_in_noise",
    "clipped_gradients",
    "tiny_gradients",
    "overfitting",
    "repetitive_samples",
)


def diagnose(history: History, facts: Facts, samples: Iterable[tuple[int, str]] = ()) -> list[Finding]:
    """Applies all rules to what a run has recorded so far; returns the findings in the order of their steps.

    Args:
        history: the records of the run.
        facts: of its config.
        samples: (updates done, text) of what the model wrote, in order.
    """
    stream = read_stream(history, samples)
    findings = [finding for rule in RULES for finding in rule(stream, facts)]
    return sorted(findings, key=lambda finding: finding.step)
