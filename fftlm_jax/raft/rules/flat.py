"""R6 to R8: why the held-out rate stands still."""

from collections.abc import Sequence

from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.raft.rules.changes import RAISE, Knobs, change_rate, warmer
from fftlm_jax.raft.rules.history import is_flat
from fftlm_jax.raft.rules.loss_shape import ends
from fftlm_jax.raft.rules.sign import Sign

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
