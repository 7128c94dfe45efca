"""How often the rules of `fftlm_jax.doctor` warn about runs that are healthy.

    python -m experiments.doctor_false_alarms --runs=300
    python -m experiments.doctor_false_alarms --runs=0 runs/a runs/b

Healthy runs are made up: the loss falls by a power of the steps to a floor, with the noise that was measured (Gaussian,
or with the heavier tails of small batches), a small spike at each raise that passes within a quarter of an epoch, and
raises every 2 to 5 epochs. Run directories are read for what they really recorded: their warnings, and the noise of
their losses. Either is judged as the loop does it, at every evaluation, and a warning counts once.

Not made up: samples. How rarely the texts of the corpora themselves look repetitive stands beside that rule.
"""

import collections
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.config.reading import read_config
from fftlm_jax.curriculum import Rule
from fftlm_jax.doctor import WARNINGS, diagnose
from fftlm_jax.doctor.evidence import STDLIB_NOISE, WARNING, Facts, facts_of, measured_noise
from fftlm_jax.optim import sawtooth_lr, stages_in_steps
from fftlm_jax.recording.history import History, Record
from fftlm_jax.recording.metrics import read_metrics, read_samples
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.process import CommandParser, path_option, run_command

_LADDER = (32, 64, 96, 129)


class HealthyRun(NamedTuple):
    """Records and facts of a made-up run."""

    records: list[Record]
    facts: Facts


def healthy_run(seed: int, *, epochs: int = 14, steps_per_epoch: int = 100) -> HealthyRun:
    """One healthy run; `seed` chooses its curve, its batch size, the tails of its noise and its raises."""
    rng = np.random.default_rng(seed)
    total = epochs * steps_per_epoch
    raises = np.cumsum(rng.integers(2, 6, size=len(_LADDER) - 1))
    raises = [int(epoch) * steps_per_epoch for epoch in raises if epoch < epochs]
    windows = int(rng.choice([8, 16, 32, 64]))
    noise = STDLIB_NOISE["next_byte"] / windows**0.5 * rng.uniform(0.7, 1.3)
    facts = _facts(steps_per_epoch, epochs, threshold=6 * noise / 2 / 50**0.5)
    step = np.arange(total)
    floor, exponent = rng.uniform(0.8, 1.5), rng.uniform(0.3, 0.6)
    loss = floor + (5.5 - floor) * (1 + step / rng.uniform(3, 15)) ** -exponent
    held_out = loss + 0.02
    for raised in raises:
        age = np.maximum(step - raised, 0)
        loss = loss + (step >= raised) * rng.uniform(0, 0.3) * np.exp(-age / (steps_per_epoch / 12))
    # A model that has learned nothing yet is wrong about all texts alike.
    learned = np.clip((5.5 - loss) / 2.5, 0.05, 1)
    tails = int(rng.choice([6, 1000]))  # Differences of 6: kurtosis 4.5, as in the run with 4 windows a step.
    loss = loss + noise * learned * rng.standard_t(tails, total) / (tails / (tails - 2)) ** 0.5
    anchors = np.array([max((r for r in raises if r <= s), default=0) for s in step])
    lrs = np.asarray(sawtooth_lr(step, facts.stages, facts.base_lr, anchor=anchors))
    norms = (0.4 + 1.2 * np.exp(-step / 30)) * rng.lognormal(0, 0.3, total)
    cutoffs = np.array([_LADDER[sum(r <= s for r in raises)] for s in step])
    records: list[Record] = []
    for s in step:
        if s in raises:
            rung = _LADDER.index(cutoffs[s])
            rise = {"from": _LADDER[rung - 1], "to": _LADDER[rung]}
            records.append({"kind": "event", "step": int(s), "event": "cutoff_raised", **rise})
        train = {"loss": float(loss[s]), "lr": float(lrs[s]), "cutoff": int(cutoffs[s]), "grad_norm": float(norms[s])}
        records.append({"kind": "train", "step": int(s) + 1, **train})
        if (s + 1) % steps_per_epoch == 0:
            score = float(held_out[s] + rng.normal(0, 0.005))
            records.append({"kind": "eval", "step": int(s) + 1, "loss": score})
    return HealthyRun(records, facts)


def _facts(steps_per_epoch: int, epochs: int, threshold: float) -> Facts:
    rule = Rule(
        name="plateau",
        ladder=_LADDER,
        freq_bins=_LADDER[-1],
        check_every=steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        min_epoch=2,
        window=100,
        threshold=threshold,
        schedule=(),
    )
    stages = stages_in_steps((("rest", 1.0, 0.05),), steps_per_epoch, epochs)
    lr = {"base_lr": 4e-3, "restart": "tooth", "factor": 1.0}
    return Facts(rule, _LADDER[0], stages, **lr, clip=1.0, temperature=0.8)


def warnings_of(
    records: Sequence[Record], facts: Facts, samples: Sequence[tuple[int, str]] = ()
) -> Iterator[tuple[str, int, str]]:
    """(rule, step, text) of every warning that the loop would have said, at the evaluation that it would say it."""
    said, history = set(), History()
    for record in records:
        history.add(record)
        if record["kind"] != "eval":
            continue
        seen = [sample for sample in samples if sample[0] <= record["step"]]
        for finding in diagnose(history, facts, seen):
            if finding.severity == WARNING and (finding.rule, finding.step) not in said:
                said.add((finding.rule, finding.step))
                yield finding.rule, finding.step, finding.text


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.doctor_false_alarms", __doc__)
    parser.add_argument("workdirs", nargs="*", type=path_option, help="run directories that are known to be healthy")
    parser.add_argument("--runs", type=int, default=300, help="made-up runs")
    args = parser.parse_args(arguments)
    return run_command(lambda: _report(args.workdirs, args.runs))


def _report(workdirs: Sequence[Path], runs: int) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(runs):
        counts.update({rule for rule, _, _ in warnings_of(*healthy_run(seed))})
    if runs:
        print(f"| rule | of {runs} made-up healthy runs, warned about |")
        print("|---|---|")
        for rule in WARNINGS:
            print(f"| {rule} | {counts[rule]} ({counts[rule] / runs:.1%}) |")
    if workdirs:
        print("| run | windows a step | loss | noise | noise x root of windows | lag-one | kurtosis | warnings |")
        print("|---|---|---|---|---|---|---|---|")
        for workdir in workdirs:
            print(_row(workdir))


def _row(workdir: Path) -> str:
    """A recorded run: the noise of the second half of its losses, and its warnings."""
    directory = RunDirectory(workdir)
    if not directory.has_config or not directory.metrics.is_file():
        raise UsageError(f"{workdir} holds no run; name run directories.")
    config, records = read_config(directory.read_config(), with_data=False), read_metrics(directory.metrics)
    losses = np.array([r["loss"] for r in records if r["kind"] == "train" and r["loss"] is not None])
    losses = losses[len(losses) // 2 :]
    noise = measured_noise(losses)
    if noise is None:
        raise UsageError(f"{workdir}: too few steps to measure their noise.")
    windows = config.train.batch_size * config.train.accum_steps
    differences = np.diff(losses)
    centred = losses - np.polyval(np.polyfit(np.arange(len(losses)), losses, 2), np.arange(len(losses)))
    lag_one = float(np.corrcoef(centred[1:], centred[:-1])[0, 1])
    kurtosis = float(np.mean((differences / differences.std()) ** 4))
    warnings = warnings_of(records, facts_of(config), read_samples(directory.samples))
    said = [f"{rule} ({step})" for rule, step, _ in warnings]
    numbers = f"{losses.mean():.2f} | {noise:.3f} | {noise * windows**0.5:.2f} | {lag_one:+.2f} | {kurtosis:.1f}"
    return f"| {workdir.name} | {windows} | {numbers} | {', '.join(said) or 'none'} |"


if __name__ == "__main__":
    sys.exit(main())
