"""The phases of a cycle: each a function of the config and of the phases before it, done once and journalled.

Kept apart from the order they come in (`loop.py`). A phase that is cut short goes on from its part file or is done
again; either way with the same random numbers, since every seed is a function of the run's, the cycle and the purpose.
"""

import hashlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from fftlm_jax.config import Config, RaftConfig
from fftlm_jax.errors import Interrupted
from fftlm_jax.generation import Decoder, SamplingConfig
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.lora import init_adapters, merge
from fftlm_jax.raft import setup
from fftlm_jax.raft.cycle_result import HeldOutResult, TrainResult
from fftlm_jax.raft.fitting import Fitted, fit
from fftlm_jax.raft.general_text import GeneralText
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
from fftlm_jax.raft.measure import Judged, judge_all, score_held_out, train_result
from fftlm_jax.raft.origin import origin_of
from fftlm_jax.raft.planning import Plan
from fftlm_jax.raft.recorder import RaftRecorder
from fftlm_jax.raft.sampler import complete
from fftlm_jax.raft.selection import Candidate, select, select_random
from fftlm_jax.raft.step_rates import epochs_for, step_rates
from fftlm_jax.raft.tasks import Pools, Task
from fftlm_jax.raft.weights import CycleWeights, arrays_by_name
from fftlm_jax.training.fine_tune import (
    FineTuneStep,
    batches,
    make_answer_loss,
    make_fine_tune_step,
    rows_of,
    steps_per_epoch,
)
from fftlm_jax.training.interrupts import Interrupts
from fftlm_jax.training.setup import evaluation_low_pass, low_pass_at


class Phases:
    """The phases of one run.

    Args:
        config: of the run.
        task, pools: what is asked.
        journal: where every phase is written down.
        interrupts: asked between batches and steps.
    """

    def __init__(self, config: Config, task: Task, pools: Pools, journal: Journal, interrupts: Interrupts) -> None:
        self.config, self.raft = config, config.raft
        self.task, self.pools, self.journal, self.interrupts = task, pools, journal, interrupts
        self.lora = setup.lora_of(config)
        self.graph, abstract = build(config.model)
        self.origin = origin_of(config, journal)
        # Weights are trained under the band limit that they came with, and need none once they are (see setup).
        self.low_pass = low_pass_at(config, self.origin.cutoff)
        self.decoder = Decoder(config.model, self.graph, evaluation_low_pass(config, self.origin.cutoff))
        self.width = task.longest_prompt + task.longest_answer
        self.weights = CycleWeights(journal, abstract, self.raft, self.lora, config.seed)
        self.answer_loss = make_answer_loss(self.graph, self.low_pass, self.raft.rows)
        self.general = GeneralText(config, self.graph, self.origin)
        self.recorder: RaftRecorder | None = None
        self._steps: dict[tuple[str, int], Any] = {}

    def supervised(self) -> None:
        """Cycle 0: trains on the labelled problems; what is written down are whole weights, adapters merged."""
        self.journal.once(0, WEIGHTS, self._supervised_weights)
        self._snapshot(0).unlink(missing_ok=True)

    def _supervised_weights(self) -> bytes:
        raft, is_lora = self.raft, self.raft.sft_trained == "lora"
        pairs = [(p.prompt, p.answer) for p in self.pools.sft]
        steps = raft.sft_epochs * steps_per_epoch(len(pairs), raft.batch_size)
        rates = step_rates(raft.sft_lr, steps, warmup=steps // 10, decay=True)
        first = setup.first_weights(self.config)[0]
        start = init_adapters(first, self.lora, self.config.seed) if is_lora else first
        base = first if is_lora else {}
        fitted = self._fit(0, raft.sft_trained, base, start, pairs, raft.sft_epochs, rates)
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
            stream = self._complete(params, prompts, self._seed(plan.cycle, "samples"), first_batch=len(found) // rows)
            for batch in stream if len(found) < total else ():
                part.append(map(text_of, batch))
                found += batch
                self.recorder.progress(len(found), total, "samples")
                self._stop_if_asked(plan.cycle, "while sampling")
            samples = self.raft.samples
            return lines_of(
                {"prompt": text_of(prompts[i // samples][1]), "sample": i % samples, "completion": text_of(completion)}
                for i, completion in enumerate(found)
            )

        content = self.journal.once(plan.cycle, "samples.jsonl", make)
        part.remove()
        return [bytes_of(row["completion"]) for row in rows_of_lines(content)]

    def verdicts(self, cycle: int, prompts: list[bytes], completions: list[bytes]) -> Judged:
        def make() -> bytes:
            judged = judge_all(self.task, prompts, completions)
            return lines_of({"ok": ok, "reason": reason} for ok, reason in zip(judged.ok, judged.reasons))

        rows = rows_of_lines(self.journal.once(cycle, "verdicts.jsonl", make))
        return Judged(completions, [row["ok"] for row in rows], [row["reason"] for row in rows])

    def kept(self, cycle: int, prompts: list[bytes], judged: Judged) -> list[Candidate]:
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
            fitted = self._fit(plan.cycle, raft.trained, base, trained, pairs, epochs, rates)
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
            seed, found = self._seed(cycle, "held out"), []
            sampling = SamplingConfig(temperature=0.0) if greedy else None
            for batch in self._complete(params, list(enumerate(prompts)), seed, samples=samples, sampling=sampling):
                found += batch
                self.recorder.progress(len(found), len(prompts) * samples, "held-out samples")
                self._stop_if_asked(cycle, "while evaluating")
            return found

        gold = rows_of([(p.prompt, p.answer) for p in problems], self.width)
        return score_held_out(
            self.task,
            problems,
            write,
            samples=raft.held_out_samples,
            by=raft.score,
            gold_loss=self.answer_loss(params, gold),
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

    def _anchors(self, cycle: int, count: int) -> list[tuple[bytes, bytes]]:
        """Labelled problems to mix among `count` kept completions, so that they make the share `raft.anchor`."""
        share, pool = self.raft.anchor, self.pools.sft
        wanted = round(count * share / (1 - share))
        order = np.random.default_rng(self._seed(cycle, "anchors")).permutation(len(pool))
        return [(pool[i].prompt, pool[i].answer) for i in np.resize(order, wanted)]

    def _fit(
        self,
        cycle: int,
        trained: str,
        base: Params,
        start: Any,
        pairs: list[tuple[bytes, bytes]],
        epochs: int,
        rates: np.ndarray,
    ) -> Fitted:
        config = self.config
        step, tx = self._step(trained, len(rates))
        key = jax.random.key(self._seed(cycle, "dropout"))
        order = batches(rows_of(pairs, self.width), self.raft.batch_size, epochs, (config.seed, cycle))

        def pause(done: int) -> bool:
            self.recorder.progress(done, len(rates), "steps")
            return self.interrupts.requested is not None

        every = config.checkpoint.every
        fitted = fit(step, tx, base, start, order, rates, key, snapshot=self._snapshot(cycle), every=every, pause=pause)
        if fitted is None:
            self._stop_if_asked(cycle, "while training")
        return fitted

    def _step(self, trained: str, steps: int) -> tuple[FineTuneStep, optax.GradientTransformationExtraArgs]:
        """The step and its optimizer, compiled once for all cycles unless the optimizer depends on their length."""
        length = steps if trained == "full" and self.config.optim.name == "muon" else 1
        if (trained, length) not in self._steps:
            tx = setup.optimizer_of(self.config, trained, length)
            lora, dropout = self.lora if trained == "lora" else None, self.config.model.dropout > 0
            step = make_fine_tune_step(self.graph, self.low_pass, tx, lora=lora, model_dropout=dropout)
            self._steps[trained, length] = step, tx
        return self._steps[trained, length]

    def _complete(
        self,
        params: Params,
        prompts: Sequence[tuple[int, bytes]],
        seed: int,
        *,
        samples: int | None = None,
        sampling: SamplingConfig | None = None,
        first_batch: int = 0,
    ) -> Iterator[list[bytes]]:
        return complete(
            self.decoder,
            params,
            prompts,
            samples=samples or self.raft.samples,
            longest=self.task.longest_answer,
            sampling=sampling or setup.sampling_of_cycle(self.config),
            seed=seed,
            rows=self.raft.rows,
            first_batch=first_batch,
        )

    def _snapshot(self, cycle: int) -> Path:
        return self.journal.folder(cycle) / "fit.part.npz"

    def _seed(self, cycle: int, purpose: str) -> int:
        digest = hashlib.sha256(f"{self.config.seed} {cycle} {purpose}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _stop_if_asked(self, cycle: int, where: str) -> None:
        if self.interrupts.requested is not None:
            name = signal.Signals(self.interrupts.requested).name
            raise Interrupted(
                f"{name} {where} in cycle {cycle}; what was done is saved, and the same command goes on from there",
                self.interrupts.requested,
            )


def budget_of(raft: RaftConfig, cycle: int) -> int:
    """Kept completions of a cycle, at most; 0 for no limit."""
    budgets = raft.budget if isinstance(raft.budget, tuple) else (raft.budget,)
    return budgets[min(cycle, len(budgets)) - 1]


def _candidates(content: bytes) -> list[Candidate]:
    return [Candidate(bytes_of(prompt), bytes_of(text), ok) for prompt, text, ok in rows_of_lines(content)]
