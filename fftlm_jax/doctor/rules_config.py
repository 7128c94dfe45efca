"""Advice about a config before it is run: what is legal, and yet unlikely to be meant. Never refuses.

Stages against the raises that the curriculum could make, rungs that no raise could reach, and a threshold that the
noise of the batches alone would pass. Left out: whether the learning rate itself fits, which only a run can tell.
"""

from collections.abc import Iterator

from fftlm_jax.config.schema import Config
from fftlm_jax.curriculum import Raise, Rule, earliest_raises
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.doctor.evidence import EVEN_NOISE, LEARNED_LOSS, NOTE, STDLIB_NOISE, WARNING, Finding, improvement_error
from fftlm_jax.doctor.rules_raises import way_out_of_noise, what_noise_does
from fftlm_jax.optim import Stage, sawtooth_lr, stages_in_steps

# Of the peak. The documents' example of stages that stall finds 0.69 of it at its earliest raise, their aligned stages
# all of it, and a single stage of 50 epochs 0.99.
_NEAR_THE_PEAK = 0.9


def advice(config: Config) -> list[Finding]:
    """Findings about a config; empty for one that there is nothing to say about."""
    controller = build_controller(config)
    rule = controller.rule
    if rule.name == "none":
        return []
    raises = earliest_raises(rule, controller.cutoff, config.total_steps)
    findings: list[Finding] = []
    if rule.name == "plateau":
        findings += [*_unreachable(config, rule, raises, controller.cutoff), *_noisy_threshold(config, rule)]
    if config.lr.schedule == "sawtooth" and raises:
        # When the plateau rule raises again is for the losses to say; a schedule says it beforehand.
        findings += _misaligned_stages(config, raises[:1] if rule.name == "plateau" else raises)
    return findings


def _unreachable(config: Config, rule: Rule, raises: list[Raise], cutoff: int) -> Iterator[Finding]:
    """Rungs that lie beyond the end even if every check finds a plateau."""
    reached = raises[-1].new if raises else cutoff
    if reached < rule.ladder[-1]:
        yield Finding(
            "unreachable_rung",
            WARNING,
            0,
            f"the run ends at cutoff {reached} of {rule.ladder[-1]} even if every check finds a plateau: "
            f"{config.total_steps} steps, none before epoch {rule.min_epoch}, {rule.window} losses after each raise",
            {"reached": reached, "top": rule.ladder[-1]},
            "curriculum.min_epoch: lower it" if not raises else "train.epochs: more of them",
        )


def _misaligned_stages(config: Config, raises: list[Raise]) -> Iterator[Finding]:
    """Raises in the midst of a tooth: whether the learning rate is high there is up to `lr.restart`."""
    lr, epoch = config.lr, config.train.steps_per_epoch
    stages = stages_in_steps(lr.stages, epoch, config.train.epochs)
    for raised in raises:
        stage = next(stage for stage in stages if raised.step < stage.end)
        found, last = (_share_of_peak(step, stage, stages) for step in (raised.step, stage.end - epoch))
        if found >= _NEAR_THE_PEAK:
            continue
        place = (
            f"the raise {raised.old} -> {raised.new} can come at epoch {raised.step / epoch:g}, in the midst of the "
            f"stage of epochs {stage.start / epoch:g} to {stage.end / epoch - 1:g}"
        )
        evidence = {"share_of_peak": found, "share_in_its_last_epoch": last}
        if lr.restart == "tooth":
            text = f"{place}; lr.restart=tooth lifts the learning rate to its peak there, so it does not stall"
            yield Finding("stages", NOTE, raised.step, text, evidence)
            continue
        lifted = "lifts it for one step only" if lr.restart == "pulse" else "leaves it there"
        yield Finding(
            "misaligned_stages",
            WARNING,
            raised.step,
            f"{place}: the learning rate is at {found:.0%} of its peak then, at {last:.0%} in the stage's last epoch, "
            f"and lr.restart={lr.restart} {lifted}: what the raise opens may not be learned",
            evidence,
            f"lr.stages: end that stage at epoch {raised.step / epoch:g}, or set lr.restart='tooth'",
        )


def _share_of_peak(step: int, stage: Stage, stages: tuple[Stage, ...]) -> float:
    return float(sawtooth_lr(step, stages, 1.0)) / stage.peak


def _noisy_threshold(config: Config, rule: Rule) -> Iterator[Finding]:
    """A threshold within the standard error that noise gives the improvement, as far as one can know beforehand."""
    windows = config.train.batch_size * config.train.accum_steps
    objective = "chunk" if config.objective.has_chunks else "next_byte"
    is_stdlib = config.data.source == "python_stdlib" and not config.data.path
    noise = (STDLIB_NOISE if is_stdlib else EVEN_NOISE)[objective] / windows**0.5
    error = improvement_error(noise, rule.window, LEARNED_LOSS[objective])
    if error < rule.threshold:
        return
    known = "measured on the standard library" if is_stdlib else "that of an even text; yours may scatter more"
    yield Finding(
        "threshold_in_noise",
        WARNING,
        0,
        f"curriculum.threshold={rule.threshold:g} lies within the noise of what it is compared with (a standard error "
        f"of {error:.2%} for {rule.window} losses of {windows} windows, {known}): {what_noise_does(rule)}",
        {"error": error, "threshold": rule.threshold, "noise": noise},
        way_out_of_noise(rule, error),
    )
