"""R0 and R5: too little was trained on, or too much of the same; neither is for the learning rate to mend."""

from collections.abc import Sequence

from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.raft.rules.changes import Knobs, warmer
from fftlm_jax.raft.rules.sign import Sign

_FEWEST_STEPS = 5
_PEAK = 0.9  # Of the cycle's learning rate.
_LEAST_UPDATE = 1e-5
_UNIQUE_LEFT, _COVERAGE_LEFT = 0.5, 0.8  # Of cycle 1's, and of the widest so far.


def no_lr_question(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R0: so few or so small steps that the learning rate had no chance to show."""
    train = results[-1].train
    if train is None or not train.steps:
        found = "The training says nothing about learning rates: nothing was kept to train on."
        return Sign("R0", found, {"steps": 0}, "more samples per prompt, so that some are kept", "raft.samples x 2")
    peak, update = train.lr_peak / train.lr, train.update_ratio
    faults = [f"it had {train.steps} step{'s' * (train.steps != 1)}"] * (train.steps < _FEWEST_STEPS)
    faults += [f"its learning rate reached {peak:.0%} of the cycle's"] * (peak < _PEAK)
    faults += [f"a step changed the weights by {update:.1e} of their norm"] * (update < _LEAST_UPDATE)
    if not faults:
        return None
    found = f"The training says little about learning rates: {', and '.join(faults)}."
    evidence = {"steps": train.steps, "peak": peak, "update_ratio": update}
    if peak < _PEAK and knobs.warmup:
        return Sign("R0", found, evidence, "less warm-up", f"raft.warmup {knobs.warmup} -> 0")
    epochs = min(knobs.epochs * max(2, -(-_FEWEST_STEPS // train.steps)), knobs.max_epochs)
    if epochs == knobs.epochs:
        return Sign("R0", found, evidence, "more samples per prompt, so that more are kept", "raft.samples x 2")
    remedy = "more epochs, or more kept samples"
    return Sign("R0", found, evidence, remedy, f"raft.epochs {knobs.epochs} -> {epochs}")


def narrows(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R5: of a task with several right answers, the samples find fewer of them, or for fewer prompts."""
    sampled = [r.samples for r in results if r.samples]
    if not results[-1].multi_answer or results[-1].samples is None or len(sampled) < 2:
        return None
    newest, first, widest = sampled[-1], sampled[0], max(s.coverage for s in sampled[:-1])
    faults = []
    if newest.unique_valid < _UNIQUE_LEFT * first.unique_valid:
        faults.append(
            f"different right answers per right sample are down from {first.unique_valid:.2f} in cycle 1 to "
            f"{newest.unique_valid:.2f}"
        )
    if newest.coverage < _COVERAGE_LEFT * widest:
        faults.append(f"prompts with a kept sample are down from {widest:.0%} to {newest.coverage:.0%}")
    if not faults:
        return None
    found = f"The samples grow narrower: {', and '.join(faults)}."
    evidence = {
        "unique_valid": newest.unique_valid,
        "unique_valid_first": first.unique_valid,
        "coverage": newest.coverage,
        "coverage_best": widest,
    }
    remedy = "a higher temperature; then a smaller raft.per_prompt, before the learning rate"
    return Sign("R5", found, evidence, remedy, warmer(knobs))
