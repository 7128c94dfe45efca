"""Gives advice on a fine-tuning run, cycle by cycle.

    fftlm raft-advise runs/raft
    fftlm raft-advise runs/raft --json

Reads the journal and changes nothing. Advice after a cycle is a pure function of the cycles up to it. All of it is a
hypothesis to be tested, one change at a time.

    R0  few or tiny steps                    no learning-rate question: more samples or epochs, less warm-up
    R1  clearly below the best cycle         roll back; then a lower rate
    R2  labelled answers are unlearnt        a lower rate, more anchor, wider coverage
    R3  training loss spikes or oscillates   a lower rate, or more warm-up
    R4  half of the gradients are clipped    nothing by itself; evidence for R1 to R3
    R5  right answers grow fewer             temperature, cap and duplicates before the rate
    R6  flat, and hardly learns              a higher rate, or less decay
    R7  flat, but more tries succeed         temperature or samples, not the rate
    R8  flat near the top                    harder prompts
    R9  R1, R2 or R3 together with R6        a conflict: no advice about the rate

The rules and their order are those of a source card and its critique. R2 and R3 ask for no change while the held-out
rate still rises, since that is what counts: of the runs measured at one temperature, the one with the highest losses
and the most clipped gradients gained most.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fftlm_jax.checkpoints.saved_run import open_config
from fftlm_jax.config.schema import Config
from fftlm_jax.raft.advice_rules import RULES, Sign
from fftlm_jax.raft.cycle_lr import Knobs
from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.raft.journal import Journal
from fftlm_jax.raft.raft_parts import knobs_of, schedule_of
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.process import CommandParser, run_command


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    parser = CommandParser("fftlm raft-advise", __doc__)
    parser.add_run()
    parser.add_argument("--json", action="store_true", help="one JSON object per piece of advice")
    args = parser.parse_args(arguments)
    return run_command(lambda: _advise(args.workdir, args.json))


def _advise(workdir: str, as_json: bool) -> None:
    config, results = open_run(workdir)
    advice = advise_all(results, knobs_of(config, schedule_of(config)))
    if as_json:
        for item in (item for items in advice for item in items):
            print(json.dumps(item._asdict()))
        return
    for result, items in zip(results, advice, strict=True):
        print(f"cycle {result.cycle}: held out {result.held_out.rate:.1%}")
        for item in items:
            print(f"  {item.rule}: {item.text}")
            if item.change:
                print(f"      change: {item.change} (from cycle {item.first_cycle} on)")


_TOO_HIGH, _TOO_LOW = ("R1", "R2", "R3"), "R6"
_PRIORITY = ("R0", "R1", "R2", "R3", "R5", "R7", "R8", "R6")  # Which one may change something.


class Advice(NamedTuple):
    """What a rule says of one cycle."""

    rule: str
    cycle: int  # After which it is given.
    text: str
    evidence: dict[str, float]
    change: str  # The one thing to change, by its config key; empty where nothing is, or another rule's comes first.
    lr_factor: float  # What `adaptive` multiplies the learning rate with.
    first_cycle: int  # That the change affects: of this run under `adaptive`, of one with the change otherwise.


def advise(results: Sequence[CycleResult], knobs: Knobs) -> list[Advice]:
    """Advice after the newest cycle, in the order of the rules; at most one of them changes anything.

    Args:
        results: of all cycles so far, cycle 0 first.
        knobs: the run's settings.

    Raises:
        ValueError: if the cycles are not 0, 1, 2, ... or one has a later parent.
    """
    _check(results)
    if len(results) == 1:
        return []
    signs = [sign for rule in RULES if (sign := rule(results, knobs)) is not None]
    fired = {sign.rule for sign in signs}
    silenced: set[str] = set()
    if "R0" in fired:
        silenced = {*_TOO_HIGH, _TOO_LOW}
    elif _TOO_LOW in fired and (high := sorted(fired & set(_TOO_HIGH))):
        silenced = {*_TOO_HIGH, _TOO_LOW}
        signs.append(
            Sign(
                "R9",
                f"Conflict: by {' and '.join(high)} the learning rate is too high, by R6 too low; no advice about it.",
                {},
            )
        )
    open_to_change = [s.rule for s in signs if s.change and s.rule not in silenced]
    chosen = min(open_to_change, key=_PRIORITY.index, default="")
    return [_advice(sign, results[-1].cycle, sign.rule == chosen) for sign in signs]


def advise_all(results: Sequence[CycleResult], knobs: Knobs) -> list[list[Advice]]:
    """Advice after every cycle in turn, each as if no later one were known."""
    return [advise(results[: index + 1], knobs) for index in range(len(results))]


def lr_factor_of(advices: Sequence[Advice]) -> float:
    """What `adaptive` multiplies the learning rate with after a cycle with this advice."""
    return math.prod(advice.lr_factor for advice in advices)


def _advice(sign: Sign, cycle: int, is_chosen: bool) -> Advice:
    evidence = {name: float(value) for name, value in sign.evidence.items() if math.isfinite(value)}
    if not is_chosen:
        return Advice(sign.rule, cycle, sign.found, evidence, "", 1.0, cycle + 1)
    text = f"{sign.found} Hypothesis: {sign.remedy}."
    return Advice(sign.rule, cycle, text, evidence, sign.change, sign.lr_factor, sign.first_cycle)


def _check(results: Sequence[CycleResult]) -> None:
    if [result.cycle for result in results] != list(range(max(1, len(results)))):
        raise ValueError(f"results: must be of cycles 0, 1, 2, ..., not {[result.cycle for result in results]}")
    for result in results[1:]:
        if not 0 <= result.parent < result.cycle:
            raise ValueError(f"results: cycle {result.cycle} cannot start from the weights of cycle {result.parent}")


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


if __name__ == "__main__":
    sys.exit(main())
