"""The phases of a cycle: each a function of the config and of the phases before it, done once and journalled.

Kept apart from the order they come in (`loop.py`) and from the model at work (`engine.py`). A phase that is cut short
goes on from its part file or is done again; either way with the same random numbers, since every seed is a function of
the run's, the cycle and the purpose.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fftlm_jax.config.schema import Config, RaftConfig
from fftlm_jax.generation import SamplingConfig
from fftlm_jax.model.lora import LoRA, init_adapters, merge
from fftlm_jax.raft import raft_parts
from fftlm_jax.raft.cycle_lr import epochs_for, step_rates
from fftlm_jax.raft.cycle_result import HeldOutResult, TrainResult
from fftlm_jax.raft.cycle_weights import CycleWeights, Origin, arrays_by_name, weights_of_origin
from fftlm_jax.raft.engine import Engine, Pairs
from fftlm_jax.raft.fine_tuning import Fitted, steps_per_epoch
from fftlm_jax.raft.journal import (
    KEPT,
    STEPS,
    WEIGHTS,
    Journal,
    PartFile,
    array_bytes,
    arrays_of,
    bytes_of,
    lines_of,
    rows_of_lines,
    text_of,
)
from fftlm_jax.raft.measure import GeneralText, Judged, judge_all, score_held_out, train_result
from fftlm_jax.raft.selection import Candidate, Plan, select, select_random
from fftlm_jax.raft.tasks import Pools, Task


class Phases:
    """The phases of one run.

    Args:
        config: of the run.
        task, pools: what is asked.
        lora: settings of the adapters.
        origin: of the first weights.
        general: text whose forgetting is measured.
        journal: where every phase is written down.
        engine: the model at work.
        weights: of the cycles that are done.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        pools: Pools,
        lora: LoRA,
        origin: Origin,
        general: GeneralText,
        journal: Journal,
        engine: Engine,
        weights: CycleWeights,
    ) -> None:
        self.config, self.raft, self.lora = config, config.raft, lora
        self.task, self.pools, self.origin, self.general = task, pools, origin, general
        self.journal, self.engine, self.weights = journal, engine, weights

    def supervised(self) -> None:
        """Cycle 0: trains on the labelled problems; what is written down are whole weights, adapters merged."""
        self.journal.once(0, WEIGHTS, self._supervised_weights)
        self._snapshot(0).unlink(missing_ok=True)

    def _supervised_weights(self) -> bytes:
        raft, is_lora = self.raft, self.raft.sft_trained == "lora"
        pairs = [(p.prompt, p.answer) for p in self.pools.sft]
        steps = raft.sft_epochs * steps_per_epoch(len(pairs), raft.batch_size)
        rates = step_rates(raft.sft_lr, steps, warmup=steps // 10, decay=True)
        first = weights_of_origin(self.config, self.origin)
        start = init_adapters(first, self.lora, self.config.seed) if is_lora else first
        base = first if is_lora else {}
        fitted = self.engine.fit(
            raft.sft_trained, base, start, pairs, rates, epochs=raft.sft_epochs, **self._fit_options(0)
        )
        params = merge(first, fitted.trained, self.lora) if is_lora else fitted.trained
        return array_bytes(arrays_by_name(params, is_adapters=False))

    def samples(self, plan: Plan, prompts: list[tuple[int, bytes]]) -> list[bytes]:
        """Completions of all prompts, batch after batch; what an interrupted sampling wrote is gone on from."""
        part = PartFile(self.journal.folder(plan.cycle) / "samples.part.jsonl")

        def make() -> bytes:
            rows, total = self.raft.rows, len(prompts) * self.raft.samples
            found = [bytes_of(text) for text in part.read()]
            found = found if len(found) == total else found[: len(found) // rows * rows]
            part.restart(map(text_of, found))
            params = self.weights.after(plan.parent)
            stream = self.engine.write(
                params,
                prompts,
                samples=self.raft.samples,
                sampling=raft_parts.sampling_of_cycle(self.config),
                seed=self._seed(plan.cycle, "samples"),
                done=len(found),
                doing=f"sampling in cycle {plan.cycle}",
                unit="samples",
            )
            for batch in stream if len(found) < total else ():
                part.append(map(text_of, batch))
                found += batch
            samples = self.raft.samples
            return lines_of(
                {"prompt": text_of(prompts[i // samples][1]), "sample": i % samples, "completion": text_of(completion)}
                for i, completion in enumerate(found)
            )

        content = self.journal.once(plan.cycle, "samples.jsonl", make)
        part.remove()
        return [bytes_of(row["completion"]) for row in rows_of_lines(content)]

    def verdicts(self, cycle: int, prompts: list[bytes], completions: list[bytes]) -> Judged:
        """What the verifier says of every completion, in their order."""

        def make() -> bytes:
            judged = judge_all(self.task, prompts, completions)
            return lines_of({"ok": ok, "reason": reason} for ok, reason in zip(judged.ok, judged.reasons))

        rows = rows_of_lines(self.journal.once(cycle, "verdicts.jsonl", make))
        return Judged(completions, [row["ok"] for row in rows], [row["reason"] for row in rows])

    def kept(self, cycle: int, prompts: list[bytes], judged: Judged) -> list[Candidate]:
        """The completions that are trained on: right ones, or as many at random; see `selection`."""
        raft, seed = self.raft, self._seed(cycle, "kept")

        def make() -> bytes:
            samples = raft.samples
            candidates = [
                Candidate(prompts[i // samples], completion, ok, i % samples)
                for i, (completion, ok) in enumerate(zip(judged.completions, judged.ok))
            ]
            budget = budget_of(raft, cycle)
            kept = select(
                candidates, per_prompt=raft.per_prompt, seed=seed, drop_solved=raft.drop_solved, budget=budget
            )
            if raft.filter == "random":
                count = budget or len(kept)
                kept = select_random(candidates, per_prompt=raft.per_prompt, seed=seed, count=count)
            return lines_of([text_of(c.prompt), text_of(c.completion), c.ok] for c in kept)

        return _candidates(self.journal.once(cycle, KEPT, make))

    def train(self, plan: Plan, kept: list[Candidate]) -> TrainResult | None:
        """Trains on what was kept, writes the weights down, and returns the numbers of it."""
        raft = self.raft
        pairs = [(c.prompt, c.completion) for c in self._accumulated(plan, kept)]
        pairs += self._anchors(plan.cycle, len(pairs))
        per_epoch = steps_per_epoch(len(pairs), raft.batch_size)
        epochs = 0
        if pairs:
            epochs = epochs_for(per_epoch, epochs=raft.epochs, min_steps=raft.min_steps, max_epochs=raft.max_epochs)
        rates = step_rates(plan.lr, epochs * per_epoch, warmup=raft.warmup, decay=raft.decay_within)

        def make() -> bytes:
            base, trained = self.weights.start(plan.parent)
            fitted = self.engine.fit(
                raft.trained, base, trained, pairs, rates, epochs=epochs, **self._fit_options(plan.cycle)
            )
            arrays = arrays_by_name(fitted.trained, is_adapters=raft.trained == "lora")
            return array_bytes({**arrays, **{STEPS + name: getattr(fitted, name) for name in Fitted._fields[1:]}})

        arrays = arrays_of(self.journal.once(plan.cycle, WEIGHTS, make))
        self._snapshot(plan.cycle).unlink(missing_ok=True)
        fitted = Fitted(None, *(arrays[STEPS + name] for name in Fitted._fields[1:]))
        return train_result(fitted, rates, plan.lr, self.config.optim.clip) if pairs else None

    def held_out(self, cycle: int) -> HeldOutResult:
        """Scores of the weights after a cycle on the held-out problems."""
        raft, problems, params = self.raft, self.pools.held_out, self.weights.after(cycle)

        def write(prompts: Sequence[bytes], samples: int, greedy: bool) -> list[bytes]:
            batches = self.engine.write(
                params,
                list(enumerate(prompts)),
                samples=samples,
                sampling=SamplingConfig(temperature=0.0) if greedy else raft_parts.sampling_of_cycle(self.config),
                seed=self._seed(cycle, "held out"),
                doing=f"evaluating in cycle {cycle}",
                unit="held-out samples",
            )
            return [completion for batch in batches for completion in batch]

        return score_held_out(
            self.task,
            problems,
            write,
            samples=raft.held_out_samples,
            by=raft.score,
            gold_loss=self.engine.answer_loss(params, [(p.prompt, p.answer) for p in problems]),
            general_bpb=self.general.bpb(params),
        )

    def _accumulated(self, plan: Plan, kept: list[Candidate]) -> list[Candidate]:
        """What a cycle trains on: what it kept or, where adapters begin anew, what was kept on the way here."""
        if self.raft.start != "restart":
            return kept
        everything, cycle = {c: None for c in kept}, plan.parent
        while cycle:
            everything |= {c: None for c in _candidates(self.journal.read(cycle, KEPT))}
            cycle = self.journal.parent(cycle)
        return list(everything)

    def _anchors(self, cycle: int, count: int) -> Pairs:
        """Labelled problems to mix among `count` kept completions, so that they make the share `raft.anchor`."""
        share, pool = self.raft.anchor, self.pools.sft
        wanted = round(count * share / (1 - share))
        order = np.random.default_rng(self._seed(cycle, "anchors")).permutation(len(pool))
        return [(pool[i].prompt, pool[i].answer) for i in np.resize(order, wanted)]

    def _fit_options(self, cycle: int) -> dict[str, int | Path]:
        return {"cycle": cycle, "seed": self._seed(cycle, "dropout"), "snapshot": self._snapshot(cycle)}

    def _snapshot(self, cycle: int) -> Path:
        return self.journal.folder(cycle) / "fit.part.npz"

    def _seed(self, cycle: int, purpose: str) -> int:
        digest = hashlib.sha256(f"{self.config.seed} {cycle} {purpose}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


def budget_of(raft: RaftConfig, cycle: int) -> int:
    """Kept completions of a cycle, at most; 0 for no limit."""
    budgets = raft.budget if isinstance(raft.budget, tuple) else (raft.budget,)
    return budgets[min(cycle, len(budgets)) - 1]


def _candidates(content: bytes) -> list[Candidate]:
    return [Candidate(bytes_of(prompt), bytes_of(text), ok) for prompt, text, ok in rows_of_lines(content)]
