"""The fine-tuning loop: cycles of sample, verify, keep and train; and its dry run.

Reward-ranked fine-tuning: cycles of sample, verify, keep, fine-tune (RAFT; Dong et al. 2023, arXiv 2304.06767).

This file says in which order things happen; what each phase does is in `phases.py`, and every one is journalled (see
`journal.py`). Left out of the published method: reward models and rewards between 0 and 1 (the verifiers are exact),
ranking by a global quantile (see `selection.py`), penalties that hold the policy near its start (anchor data and the
rollback stand for them), verifiers of the user's own, and forks of a run (`init.checkpoint` starts another).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.config.keys_raft import RaftConfig
from fftlm_jax.config.reading import refuse_changes, to_dict
from fftlm_jax.config.schema import Config, keys
from fftlm_jax.model import build
from fftlm_jax.model.lora import init_adapters
from fftlm_jax.raft import raft_parts
from fftlm_jax.raft.advise import Advice, advise_all, lr_factor_of
from fftlm_jax.raft.cycle_recorder import RaftRecorder, has_finished
from fftlm_jax.raft.cycle_result import CycleResult, best_of
from fftlm_jax.raft.cycle_weights import CycleWeights, origin_of
from fftlm_jax.raft.engine import Engine
from fftlm_jax.raft.fine_tuning import steps_per_epoch
from fftlm_jax.raft.journal import PLAN, RESULT, WEIGHTS, Journal, json_bytes, text_of
from fftlm_jax.raft.measure import GeneralText, sample_result
from fftlm_jax.raft.phases import Phases
from fftlm_jax.raft.selection import Plan, next_plan
from fftlm_jax.raft.tasks import fingerprint
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.runtime.process import Interrupts
from fftlm_jax.training.run_parts import config_of

# Keys of section raft that only plans depend on: a cycle that is under way stands whatever they become.
_PLANNED = {"cycles", "on_regress", "regress_factor", "rollbacks", "level_rate"}


def run(values: Mapping[str, Any], workdir: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Fine-tunes (or goes on fine-tuning) one run of task "raft" to its end.

    Args:
        values: a config with every key of `configs/aligned.py`, as ConfigDict or nested dict.
        workdir: run directory; created, or resumed as `resume.mode` says.
        overwrite: move an existing run directory aside first.

    Returns:
        Final numbers: `cycle` (the last), `best` (cycle), `start_rate`, `best_rate`, `last_rate` (held out).

    Raises:
        RunError: any of its kinds, see `fftlm_jax.runtime.errors`.
    """
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        return RaftRun(values, RunDirectory(workdir), overwrite, interrupts, stack).run()


class RaftRun:
    """One run under way. Building it checks everything and locks the run directory, but writes nothing else."""

    def __init__(
        self,
        values: Mapping[str, Any],
        directory: RunDirectory,
        overwrite: bool,
        interrupts: Interrupts,
        stack: ExitStack,
    ) -> None:
        saved_config = directory.read_config() if directory.has_config and not overwrite else None
        config = self.config = raft_parts.with_yaml_text(config_of(values, saved_config))
        self.directory, self.stack = directory, stack
        if not overwrite:
            directory.require_usable(config.resume.mode)
            if saved_config is not None:
                refuse_changes(saved_config, config)
        self.task, self.pools = raft_parts.task_of(config)
        self.schedule = raft_parts.schedule_of(config)
        self.knobs = raft_parts.knobs_of(config, self.schedule)
        self.lora, self.journal, self.interrupts = raft_parts.lora_of(config), Journal(directory.root), interrupts
        self.origin = origin_of(config, None if overwrite else self.journal)
        self.general, self.mesh = GeneralText(config, self.origin), raft_parts.mesh_of(config)
        self.moved_to = stack.enter_context(directory.taken(overwrite))
        self.finished = self.journal.finished()

    def run(self) -> dict[str, Any]:
        """All that is left to do."""
        results = self.journal.results()[: self.finished]
        if results and self._next(results) is None and has_finished(self.directory.metrics):
            print(f"already finished: {results[-1].cycle} cycles are done, in {self.directory.root}")
            return _numbers(results)
        self.directory.write_config(to_dict(self.config))
        changes = self.directory.write_env()
        self.recorder = RaftRecorder(self.config, self.directory, self.finished - 1)
        self.stack.callback(self.recorder.close)
        self.phases = self._build_phases()
        self.checkpoints = Checkpoints(self.directory.checkpoints, self.config.checkpoint.keep_last, keep_best=0)
        self.stack.callback(self.checkpoints.close)
        self.checkpoints.set_aside_from(self.finished, "its cycle is not done, or was moved away")
        notes = [*self.directory.notes, *self.checkpoints.notes]
        notes += [f"environment changed: {name} {old!r} -> {new!r}" for name, (old, new) in changes.items()]
        self.recorder.started(self.task, self.pools, self.moved_to, results, notes)
        if not results:
            results.append(self._begin())
        while (plan := self._next(results)) is not None:
            results.append(self._cycle(plan, results))
        self.recorder.finished(results, self._advice(results))
        return _numbers(results)

    def _build_phases(self) -> Phases:
        config, task, origin, journal = self.config, self.task, self.origin, self.journal
        engine = Engine(
            config, task, origin.cutoff, self.recorder.progress, self.interrupts, self.mesh, self.recorder.say
        )
        weights = CycleWeights(journal, build(config.model)[1], config.raft, self.lora, config.seed)
        return Phases(config, task, self.pools, self.lora, origin, self.general, journal, engine, weights)

    def _next(self, results: Sequence[CycleResult]) -> Plan | None:
        factor = lr_factor_of(self._advice(results)[-1])
        return next_plan(results, self.config.raft, self.schedule, self.task.levels, factor)

    def _advice(self, results: Sequence[CycleResult]) -> list[list[Advice]]:
        return advise_all(results, self.knobs)

    def _begin(self) -> CycleResult:
        """Cycle 0: supervised fine-tuning, and the scores that all cycles are compared with."""
        raft, record, phases = self.config.raft, self.recorder, self.phases
        record.begin(0)
        self._write_plan(Plan(0, 0, raft.sft_lr, raft.first_level), parent_weights="")
        with record.phase("train"):
            phases.supervised()
        with record.phase("evaluate"):
            held_out = phases.held_out(0)
        result = CycleResult(0, 0, held_out, multi_answer=self.task.multi_answer)
        return self._finish(result, [result])

    def _cycle(self, plan: Plan, results: Sequence[CycleResult]) -> CycleResult:
        """One cycle."""
        cycle, record, phases = plan.cycle, self.recorder, self.phases
        record.begin(cycle)
        self._write_plan(plan, self.journal.digest(plan.parent, WEIGHTS))
        problems = [(i, p.prompt) for i, p in enumerate(self.pools.raft) if self.task.level(p.prompt) <= plan.level]
        prompts = [prompt for _, prompt in problems]
        with record.phase("sample"):
            completions = phases.samples(plan, problems)
        with record.phase("verify"):
            judged = phases.verdicts(cycle, prompts, completions)
            kept = phases.kept(cycle, prompts, judged)
            samples = sample_result(self.task, prompts, judged, kept, plan.level)
        with record.phase("train"):
            train = phases.train(plan, kept)
        with record.phase("evaluate"):
            held_out = phases.held_out(cycle)
        result = CycleResult(cycle, plan.parent, held_out, samples, train, self.task.multi_answer)
        return self._finish(result, [*results, result])

    def _finish(self, result: CycleResult, results: list[CycleResult]) -> CycleResult:
        """Keeps the weights of a cycle that is the best so far, writes down what it showed, and marks it done."""
        if best_of(results).cycle == result.cycle:
            self._save(result.cycle)
        self.recorder.cycle(results, self._advice(results))
        content = self.journal.once(result.cycle, RESULT, lambda: json_bytes(result.to_dict()))
        return CycleResult.from_dict(json.loads(content))

    def _write_plan(self, plan: Plan, parent_weights: str) -> None:
        """Writes a plan down; one that was begun under another is refused."""
        identity = {
            "task": fingerprint(self.task),
            "pools": _digest([list(map(text_of, problem)) for pool in self.pools for problem in pool]),
            "parent_weights": parent_weights,
            "seed": self.config.seed,
            "settings": _settings(self.config),
        }
        if plan.cycle == 0:
            identity["origin"] = dataclasses.asdict(self.origin)
        content = json_bytes({**plan.to_dict(), **identity})
        if self.journal.once(plan.cycle, PLAN, lambda: content) != content:
            raise CheckpointError(
                f"{self.journal.folder(plan.cycle) / PLAN}: this cycle was begun under another plan; use the settings "
                f"of that time, or move cycles/{plan.cycle:04} away to begin it anew."
            )

    def _save(self, cycle: int) -> None:
        """Saves the model after a cycle as a checkpoint, for generation, evaluation, export and `init.checkpoint`."""
        host = {
            "controller": {"cutoff": self.origin.cutoff},
            "corpus": fingerprint(self.task),
            "config": to_dict(self.config),
        }
        self.checkpoints.save(cycle, {"params": self.phases.weights.after(cycle)}, host)


def _numbers(results: Sequence[CycleResult]) -> dict[str, Any]:
    """What `run` returns."""
    best = best_of(results)
    return {
        "cycle": results[-1].cycle,
        "best": best.cycle,
        "start_rate": results[0].held_out.rate,
        "best_rate": best.held_out.rate,
        "last_rate": results[-1].held_out.rate,
    }


def _settings(config: Config) -> str:
    """A digest of what the phases of a cycle depend on; what plans alone depend on is in the plans."""
    values = to_dict(config)
    unchanged = {k for k, field in keys(RaftConfig).items() if field.metadata["is_later"]} & {
        k for k, v in values["raft"].items() if v == getattr(RaftConfig(), k)
    }  # A cycle that an earlier version began knows nothing of them.
    raft = {k: v for k, v in values["raft"].items() if k not in _PLANNED | unchanged}
    passed_over = {"skip_nonfinite": n} if (n := config.train.skip_nonfinite) else {}
    return _digest({"raft": raft, "optim": values["optim"], **passed_over})


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def dry_run(values: Mapping[str, Any]) -> None:
    """Validates a config and its task, and prints what it found.

    Raises:
        RunError: whatever would stop a real run before its first step.
    """
    config = raft_parts.with_yaml_text(config_of(values))
    raft = config.raft
    task, pools = raft_parts.task_of(config)
    schedule, lora = raft_parts.schedule_of(config), raft_parts.lora_of(config)
    abstract = build(config.model)[1]
    GeneralText(config, origin_of(config, None))
    raft_parts.mesh_of(config)
    print(f"raft: {to_dict(config)['raft']}")
    for name, pool in pools._asdict().items():
        shown = ", ".join(repr(problem.prompt + problem.answer)[1:] for problem in pool[:3])
        print(f"{name}: {len(pool)} problems, such as {shown}")
    steps = raft.sft_epochs * steps_per_epoch(len(pools.sft), raft.batch_size)
    print(f"supervised: {steps} steps of up to {raft.batch_size} answers on {_size(abstract):,} parameters")
    if "lora" in (raft.trained, raft.sft_trained):
        adapters = jax.eval_shape(lambda params: init_adapters(params, lora, config.seed), abstract)
        print(f"adapters: {_size(adapters):,} parameters at {', '.join(adapters)}")
    print(f"a cycle: {len(pools.raft) * raft.samples:,} samples of up to {task.longest_answer} bytes")
    print(f"learning rates: {', '.join(f'{schedule(n):.3g}' for n in range(1, raft.cycles + 1))}")
    print("nothing was written")


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
