"""The rules of the fine-tuning advisor, each a pure function of the cycles so far."""

from collections.abc import Sequence
from typing import NamedTuple

from fftlm_jax.raft.cycle_lr import LOWER, RAISE, Knobs, change_rate, warmer
from fftlm_jax.raft.cycle_result import (
    CycleResult,
    best_of,
    ends,
    is_flat,
    largest_spike,
    smallest_swing,
    still_gains,
    two_errors,
)


class Sign(NamedTuple):
    """What a rule found in the newest cycle."""

    rule: str
    found: str
    evidence: dict[str, float]
    remedy: str = ""  # What the change is, as a sentence without its label; empty where the rule asks for none.
    change: str = ""  # By config key.
    lr_factor: float = 1.0
    first_cycle: int = 1


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


_LEAST_DROP = 0.01
_SMALL_NORM = 0.05 / 0.3  # Of the clip: the card's band 0.05 goes with its clip of 0.3.
_WIDE_GAP = 0.10
_SOLVED = 0.95


def hardly_learns(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R6: flat rates, and a training loss that hardly falls or gradients that are small against the clip."""
    train = results[-1].train
    if train is None or not train.losses or not is_flat(results):
        return None
    first, last = ends(train.losses)
    drop, norm = 1 - last / max(first, 1e-12), train.grad_norm["0.5"] / train.clip
    reasons = [f"the training loss went from {first:.3g} to {last:.3g}"] * (drop < _LEAST_DROP)
    reasons += [f"the median gradient is {norm:.0%} of the clip"] * (norm < _SMALL_NORM)
    if not reasons:
        return None
    found = f"The held-out rate was flat for two cycles ({_rates(results)}), and {' and '.join(reasons)}."
    change = change_rate(RAISE, results, knobs)
    evidence = {"drop": drop, "norm_over_clip": norm}
    remedy = f"a higher learning rate{change.note}"
    return Sign("R6", found, evidence, remedy, change.change, RAISE, change.first_cycle)


def finds_but_seldom(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R7: flat rates, though more tries find answers that one does not."""
    held_out, samples = results[-1].held_out, results[-1].samples
    curve = held_out.pass_at if len(held_out.pass_at) > 1 or samples is None else samples.pass_at
    k = max(curve, key=int, default="1")
    gap = curve[k] - curve["1"] if "1" in curve else 0.0
    if not is_flat(results) or gap <= _WIDE_GAP:
        return None
    found = (
        f"The held-out rate was flat for two cycles ({_rates(results)}), but one of {k} samples is right for "
        f"{curve[k]:.0%} of the prompts, against {curve['1']:.0%} with a single one."
    )
    remedy = "a higher temperature or more raft.samples, not another learning rate"
    return Sign("R7", found, {"pass_at_1": curve["1"], f"pass_at_{k}": curve[k]}, remedy, warmer(knobs))


def is_solved(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R8: flat because there is nothing left to learn."""
    rate = results[-1].held_out.rate
    if not is_flat(results) or rate <= _SOLVED:
        return None
    found = f"The held-out rate is flat at {rate:.1%}: these prompts are done."
    return Sign("R8", found, {"rate": rate}, "harder prompts", "raft.size: the next larger")


def _rates(results: Sequence[CycleResult]) -> str:
    return ", ".join(f"{r.held_out.rate:.1%}" for r in (results[results[-2].parent], *results[-2:]))


_GOLD_RISE = 0.02
_CLIPPED = 0.5


def fell_from_best(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R1: clearly worse than the best cycle."""
    newest, best = results[-1], best_of(results)
    fall, error = best.held_out.rate - newest.held_out.rate, two_errors(best, newest)
    if fall <= error:
        return None
    found = (
        f"The held-out rate of {newest.held_out.rate:.1%} lies {_points(fall)} below cycle {best.cycle}'s "
        f"{best.held_out.rate:.1%}, more than 2 standard errors ({_points(error)}); as a hypothesis, roll "
        f"back to the weights of cycle {best.cycle}."
    )
    evidence = {"rate": newest.held_out.rate, "best": best.held_out.rate, "best_cycle": best.cycle, "2_se": error}
    return _lower("R1", found, {**evidence, **_clipping(newest)}, "then a lower learning rate", results, knobs)


def gold_loss_rises(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R2: two cycles in a row that fit what was kept and unlearn what was labelled."""
    if len(results) < 3:
        return None
    newest = results[-1]
    rises, falls = [], []
    for result in results[-2:]:
        before = results[result.parent].held_out.gold_loss
        rises.append(result.held_out.gold_loss / max(before, 1e-12) - 1)
        first, last = ends(result.train.losses) if result.train else (0.0, 0.0)
        falls.append(last < first)
    if min(rises) <= _GOLD_RISE or not all(falls):
        return None
    found = (
        f"In two cycles the loss of the labelled held-out answers rose by {rises[0]:.1%} and {rises[1]:.1%} "
        "while the training loss fell."
    )
    evidence = {"rise_before": rises[0], "rise": rises[1], "anchor": knobs.anchor, **_clipping(newest)}
    if newest.samples:
        evidence["coverage"] = newest.samples.coverage
    remedy = f"a lower learning rate; if not that, more raft.anchor (now {knobs.anchor:g}) or a wider coverage"
    return _lower("R2", found, evidence, remedy, results, knobs, unless_it_gains=True)


def loss_is_rough(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R3: a training loss that spikes or oscillates."""
    newest = results[-1]
    losses = newest.train.losses if newest.train else ()
    spike, swing = largest_spike(losses), smallest_swing(losses)
    if spike:
        found = (
            f"The training loss spiked to {spike.loss:.3g} at step {spike.step} of {len(losses)}, "
            f"after a median of {spike.median:.3g}."
        )
        evidence = {"loss": spike.loss, "median": spike.median, "step": spike.step}
    elif swing:
        found = f"From step {swing[0]} on the training loss goes up and down in turn by {swing[1]:.0%} or more."
        evidence = {"swing": swing[1], "step": swing[0]}
    else:
        return None
    remedy = f"a lower learning rate; if not that, more raft.warmup (now {knobs.warmup})"
    return _lower("R3", found, {**evidence, **_clipping(newest)}, remedy, results, knobs, unless_it_gains=True)


def clipped(results: Sequence[CycleResult], knobs: Knobs) -> Sign | None:
    """R4: many gradients longer than the clip. A note only: a run with 44 to 86 % of them gained as much as any."""
    evidence = _clipping(results[-1])
    if not evidence:
        return None
    share = evidence["clip_fraction"]
    found = f"{share:.0%} of the gradients were clipped; that alone is no sign of too high a learning rate."
    return Sign("R4", found, evidence)


def _lower(
    rule: str,
    found: str,
    evidence: dict[str, float],
    remedy: str,
    results: Sequence[CycleResult],
    knobs: Knobs,
    unless_it_gains: bool = False,
) -> Sign:
    """A sign of too high a learning rate. Where the rate that matters still rises, it asks for no change."""
    if unless_it_gains and still_gains(results):
        return Sign(rule, f"{found} The held-out rate still rises, so nothing follows from that.", evidence)
    change = change_rate(LOWER, results, knobs)
    return Sign(rule, found, evidence, remedy + change.note, change.change, LOWER, change.first_cycle)


def _clipping(result: CycleResult) -> dict[str, float]:
    """R4's evidence, which supports the rules of too high a rate."""
    share = result.train.clip_fraction if result.train else 0.0
    return {"clip_fraction": share} if share >= _CLIPPED else {}


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


RULES = (  # R0 to R8.
    no_lr_question,
    fell_from_best,
    gold_loss_rises,
    loss_is_rough,
    clipped,
    narrows,
    hardly_learns,
    finds_but_seldom,
    is_solved,
)
