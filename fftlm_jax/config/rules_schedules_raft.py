"""Rules between the keys of curriculum, learning rate and reward-ranked fine-tuning; as those of `rules.py`."""

import math
from collections.abc import Iterator
from typing import Any

from fftlm_jax.config import cutoff as units
from fftlm_jax.config.schema import Config, rule_in_force
from fftlm_jax.runtime.untrusted import shown


def ladder_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong with the ladder of cutoffs and the first of them, where a rule climbs it."""
    c, seq_len = config.curriculum, config.model.seq_len
    if rule_in_force(c, config.objective) == "none":
        return  # Nobody climbs it, so it need not fit the window.
    rungs, broken = [], False
    for value in c.ladder:
        try:
            rungs.append(units.cutoff_in_bins(value, seq_len))
        except ValueError as error:
            broken = True
            yield f"config.curriculum.ladder: {error} (in a shell: \"--config.curriculum.ladder=(0.25,'full')\")."
    if not c.ladder:
        yield "config.curriculum.ladder: is empty; write at least ('full',)."
    elif not broken and any(b <= a for a, b in zip(rungs, rungs[1:])):
        bins = shown(tuple(rungs))
        yield f"config.curriculum.ladder: {shown(c.ladder)} is {bins} bins, which do not increase; sort its rungs."
    if c.initial != "first":
        try:
            initial = units.cutoff_in_bins(c.initial, seq_len)
        except ValueError as error:
            yield f"config.curriculum.initial: {error}, or 'first' for the first rung."
        else:
            if not broken and rungs and c.rule == "plateau" and initial > rungs[-1]:
                yield f"config.curriculum.initial: {c.initial} lies above the ladder's last rung {c.ladder[-1]}."


def curriculum_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong with the plateau rule, its test and the schedule."""
    c, seq_len = config.curriculum, config.model.seq_len
    if not -1.0 < c.threshold < 1.0:
        yield f"config.curriculum.threshold: a relative improvement lies in (-1, 1), not {c.threshold}."
    if c.rule == "plateau" and c.window % 2:
        yield f"config.curriculum.window: {c.window} has no two equal halves; make it even."
    if c.rule == "plateau" and c.test == "confidence" and c.window < 4:
        yield f"config.curriculum.window: {c.window} losses show no noise to test 'confidence'; take 4 or more."
    if c.rule == "schedule" and not c.schedule:
        yield "config.curriculum.schedule: is empty; write rows (first epoch, cutoff), such as ((0, 128), (2, 'full'))."
    previous = (-1, 0)
    for row in c.schedule:
        try:
            epoch, value = row
            bins = units.cutoff_in_bins(value, seq_len)
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch <= previous[0] or bins < previous[1]:
                raise ValueError("epochs must increase and cutoffs must not fall")
            previous = (epoch, bins)
        except (TypeError, ValueError) as error:
            if c.rule == "schedule":
                yield f"config.curriculum.schedule: row {shown(row)} is not (epoch, cutoff): {error}."


def stage_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong with the stages of the sawtooth, and whether they last as long as training does."""
    stages, epochs = config.lr.stages, config.train.epochs
    if config.lr.schedule != "sawtooth":
        return
    if not stages:
        yield "config.lr.stages: is empty; write at least (('rest', 1.0, 0.05),)."
    used = 0
    for i, stage in enumerate(stages):
        if not (isinstance(stage, tuple) and len(stage) == 3):
            yield f"config.lr.stages: {shown(stage)} is not (epochs or 'rest', peak, floor)."
            return
        length, peak, floor = stage
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (peak, floor))
        if not numbers or not 0 <= floor <= peak or peak <= 0 or peak == float("inf"):
            yield f"config.lr.stages: {shown(stage)} needs numbers 0 <= floor <= peak, 0 < peak."
        if length == "rest":
            if i != len(stages) - 1:
                yield "config.lr.stages: only the last stage may be 'rest'."
        elif isinstance(length, bool) or not isinstance(length, int) or length < 1:
            yield f"config.lr.stages: {shown(stage)} must last a whole number of epochs, at least 1, or 'rest'."
            return
        else:
            used += length
    if stages and stages[-1][0] == "rest":
        if used >= epochs:
            fix = "write fewer, such as (('rest', 1.0, 0.05),)"
            yield f"config.lr.stages: {used} epochs before 'rest' do not fit train.epochs {epochs}; {fix}."
    elif used != epochs:
        yield f"config.lr.stages: last {used} epochs in all, but train.epochs is {epochs}; end with 'rest'."


def batch_stage_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong with the stages of growing batches."""
    stages, steps = config.train.batch_stages, config.train.steps_per_epoch * config.train.epochs
    whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in stages)
    if not stages or not whole:
        yield f"config.train.batch_stages: {shown(stages)} must be whole numbers of at least 1, such as (1, 2, 3)."
    elif len(stages) > steps:
        yield f"config.train.batch_stages: {len(stages)} stages do not fit into {steps} steps; write fewer."
    elif len(set(stages)) > 1 and config.lr.schedule == "cooldown" and len(stages) != len(config.lr.multipliers):
        yield (
            f"config.train.batch_stages: {len(stages)} stages and the {len(config.lr.multipliers)} of lr.multipliers "
            "end at different steps; write as many of one as of the other."
        )


def cooldown_faults(config: Config) -> Iterator[str]:
    """Yields what is wrong with the cooldown, which answers no raise."""
    lr = config.lr
    bad = [v for v in lr.multipliers if isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < 1e6]
    if bad or not lr.multipliers:
        yield f"config.lr.multipliers: {shown(lr.multipliers)} must be one or more numbers above 0."
    raises = rule_in_force(config.curriculum, config.objective) != "none"
    if lr.schedule == "cooldown" and raises and (lr.restart != "none" or lr.factor != 1.0):
        yield (
            "config.lr.schedule: 'cooldown' takes no events, so a raise cannot restart or reduce it; set lr.restart to "
            "'none' and lr.factor to 1.0, or the schedule to 'sawtooth'."
        )


def raft_faults(config: Any) -> Iterator[str]:
    """Every sentence about a config of task "raft" that cannot run."""
    yield from _base(config)
    yield from _training(config)
    yield from _schedule(config.raft)


def _base(config: Any) -> Iterator[str]:
    raft, has_base = config.raft, bool(config.init.checkpoint)
    if config.curriculum.rule != "none":
        yield "config.curriculum.rule: fine-tuning keeps the cutoff of the weights it starts from; set it to 'none'."
    if config.curriculum.method == "signal":
        yield "config.curriculum.method: answers are scored inside the window, which a signal mask lets see its future."
    if config.objective.name != "next_byte":
        yield "config.objective.name: answers are learned and written byte by byte; set it to 'next_byte'."
    if raft.sft_trained == "lora" and not has_base:
        yield "config.raft.sft_trained: adapters on random weights learn little; name an init.checkpoint or use 'full'."
    if raft.sft_epochs == 0 and not has_base:
        yield "config.raft.sft_epochs: random weights answer nothing; train them, or name an init.checkpoint."
    if config.optim.name != "adamw" and "full" not in (raft.trained, raft.sft_trained):
        yield "config.optim.name: adapters are trained with AdamW; use 'adamw', or train all weights ('full')."


def _training(config: Any) -> Iterator[str]:
    raft = config.raft
    if raft.batch_size % raft.accum_steps:
        parts, size = raft.accum_steps, raft.batch_size
        yield f"config.raft.accum_steps: {parts} micro-batches do not divide batch_size {size}; choose a divisor."
    if config.mesh.fsdp > 1:
        yield "config.mesh.fsdp: fine-tuning keeps weights whole on every device; set it to 1 and raise mesh.data."
    if not raft.lora_targets or not all(isinstance(name, str) for name in raft.lora_targets):
        yield f"config.raft.lora_targets: {shown(raft.lora_targets)} must name matrices, such as ('w_in', 'w_out')."
    if raft.max_epochs < raft.epochs:
        yield f"config.raft.max_epochs: {raft.max_epochs} is less than epochs {raft.epochs}; raise it."
    budgets = raft.budget if isinstance(raft.budget, tuple) else (raft.budget,)
    if not budgets or not all(isinstance(b, int) and not isinstance(b, bool) and b >= 0 for b in budgets):
        yield f"config.raft.budget: {shown(raft.budget)} must be a whole number of at least 0, or one per cycle."
    if raft.reversed_answer and raft.task != "add":
        yield f"config.raft.reversed_answer: is for task 'add', not for {raft.task!r}; set it to False."
    if raft.temperature == 0 and raft.samples > 1:
        yield "config.raft.temperature: at 0 all samples of a prompt are the same; raise it, or take one sample."
    if raft.trained == "full" and raft.start == "merge":
        yield "config.raft.start: 'merge' belongs to adapters; all weights train on with 'continue'."


def _schedule(raft: Any) -> Iterator[str]:
    bad = [rate for rate in raft.lr_rates if not _is_rate(rate)]
    if bad:
        yield f"config.raft.lr_rates: {shown(bad[0])} is no learning rate; write numbers above 0."
    if raft.lr == "manual" and not raft.lr_rates:
        yield "config.raft.lr_rates: is empty; raft.lr 'manual' needs the rates of the first cycles."
    if raft.lr_rates and raft.lr != "manual":
        yield f"config.raft.lr_rates: raft.lr {raft.lr!r} is another schedule; keep one of the two."
    if raft.lr_yaml and (raft.lr != "constant" or raft.lr_rates):
        other = "lr_rates" if raft.lr_rates else f"lr {raft.lr!r}"
        yield f"config.raft.lr_yaml: raft.{other} is another schedule; keep one of the two (raft.lr='constant')."


def _is_rate(value: Any) -> bool:
    """Whether a value is a number above 0, or the text of one."""
    try:
        return not isinstance(value, bool) and 0 < float(value) < math.inf
    except (TypeError, ValueError):
        return False
