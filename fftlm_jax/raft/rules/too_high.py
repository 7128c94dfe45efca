"""R1 to R4: what a learning rate that is too high does, or what a card takes for that."""

from collections.abc import Sequence

from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.raft.rules.changes import LOWER, Knobs, change_rate
from fftlm_jax.raft.rules.history import best_of, still_gains, two_errors
from fftlm_jax.raft.rules.loss_shape import ends, largest_spike, smallest_swing
from fftlm_jax.raft.rules.sign import Sign

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
