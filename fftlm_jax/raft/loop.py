"""Reward-ranked fine-tuning: cycles of sample, verify, keep, fine-tune (RAFT; Dong et al. 2023, arXiv 2304.06767).

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

from fftlm_jax.config import Config, to_dict
from fftlm_jax.errors import CheckpointError
from fftlm_jax.model import build
from fftlm_jax.raft import setup
from fftlm_jax.raft.advisor import Advice, advise_all, lr_factor_of
from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.raft.engine import Engine
from fftlm_jax.raft.general_text import GeneralText
from fftlm_jax.raft.journal import PLAN, RESULT, WEIGHTS, Journal, json_bytes, text_of
from fftlm_jax.raft.measure import sample_result
from fftlm_jax.raft.origin import origin_of
from fftlm_jax.raft.phases import Phases
from fftlm_jax.raft.planning import Plan, next_plan
from fftlm_jax.raft.recorder import RaftRecorder, has_finished
from fftlm_jax.raft.rules.history import best_of
from fftlm_jax.raft.tasks import fingerprint
from fftlm_jax.raft.weights import CycleWeights
from fftlm_jax.training.checkpoint import Checkpoints
from fftlm_jax.training.interrupts import Interrupts
from fftlm_jax.training.resume import refuse_changes
from fftlm_jax.training.run_directory import RunDirectory
from fftlm_jax.training.setup import config_of

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
        RunError: any of its kinds, see `fftlm_jax.errors`.
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
        begun = directory.read_config() if directory.has_config and not overwrite else None
        config = self.config = setup.with_yaml_text(config_of(values, begun))
        self.directory, self.stack = directory, stack
        if not overwrite:
            directory.require_usable(config.resume.mode)
            if begun is not None:
                refuse_changes(begun, config)
        self.task, self.pools = setup.task_of(config)
        self.schedule = setup.schedule_of(config)
        self.knobs = setup.knobs_of(config, self.schedule)
        self.lora, self.journal, self.interrupts = setup.lora_of(config), Journal(directory.root), interrupts
        self.origin = origin_of(config, None if overwrite else self.journal)
        self.general = GeneralText(config, self.origin)
        self.moved_to = directory.move_aside() if overwrite else None
        directory.acquire()
        stack.callback(directory.release)
        self.finished = self.journal.finished()

    def run(self) -> dict[str, Any]:
        """All that is left to do."""
        results = self.journal.results()[: self.finished]
        if results and self._next(results) is None and has_finished(self.directory.metrics):
            print(f"already finished: {results[-1].cycle} cycles are done, in {self.directory.root}")
            return _numbers(results)
        self.directory.write_config(to_dict(self.config))
        self.directory.write_env()
        self.recorder = RaftRecorder(self.config, self.directory, self.finished - 1)
        self.stack.callback(self.recorder.close)
        self.phases = self._build_phases()
        self.checkpoints = Checkpoints(self.directory.checkpoints, self.config.checkpoint.keep_last, keep_best=0)
        self.stack.callback(self.checkpoints.close)
        self.checkpoints.set_aside_from(self.finished, "its cycle is not done, or was moved away")
        notes = [*self.directory.notes, *self.checkpoints.notes]
        self.recorder.started(self.task, self.pools, self.moved_to, results, notes)
        if not results:
            results.append(self._begin())
        while (plan := self._next(results)) is not None:
            results.append(self._cycle(plan, results))
        self.recorder.finished(results, self._advice(results))
        return _numbers(results)

    def _build_phases(self) -> Phases:
        config, task, origin, journal = self.config, self.task, self.origin, self.journal
        engine = Engine(config, task, origin.cutoff, self.recorder.progress, self.interrupts)
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
    return _digest({"raft": {k: v for k, v in values["raft"].items() if k not in _PLANNED}, "optim": values["optim"]})


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
