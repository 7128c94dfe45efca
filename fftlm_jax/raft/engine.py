"""The model at work in a fine-tuning run: trains on pairs, writes completions, scores answers.

Compiled once for all cycles. Between batches and steps it tells how far it is and asks whether it is to stop.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from fftlm_jax.config.schema import Config
from fftlm_jax.config.traits import OPTIMIZERS
from fftlm_jax.generation import Decoder, SamplingConfig
from fftlm_jax.model import build
from fftlm_jax.model.language_model import Params, evaluation_low_pass, low_pass_at
from fftlm_jax.raft import raft_parts
from fftlm_jax.raft.fine_tuning import (
    FineTuneStep,
    Fitted,
    batches,
    fit,
    make_answer_loss,
    make_fine_tune_step,
    rows_of,
)
from fftlm_jax.raft.tasks import END, Task
from fftlm_jax.runtime.errors import Interrupted
from fftlm_jax.runtime.jax_settings import random_key
from fftlm_jax.runtime.process import Interrupts

Pairs = list[tuple[bytes, bytes]]  # Questions and answers.


class Engine:
    """The model of one run.

    Args:
        config: of the run.
        task: what is asked; how long its texts are.
        cutoff: in bins, of the first weights.
        progress: told (done, total, unit) of the phase under way.
        interrupts: asked between batches and steps.
        mesh: devices to cut the rows of a training step over.
        say: told in a sentence of what is out of the ordinary.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        cutoff: int,
        progress: Callable[[int, int, str], None],
        interrupts: Interrupts,
        mesh: Mesh | None,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._progress, self._interrupts = config, progress, interrupts
        self._longest_answer = task.longest_answer
        self._width = task.longest_prompt + task.longest_answer
        self._graph, _ = build(config.model)
        # Weights are trained under the band limit that they came with; trained so, they need none to be used.
        self._low_pass = low_pass_at(config, cutoff)
        self._decoder = Decoder(config.model, self._graph, evaluation_low_pass(config, cutoff))
        self._answer_loss = make_answer_loss(self._graph, self._low_pass, config.raft.rows)
        self._lora = raft_parts.lora_of(config)
        self._mesh, self._say = mesh, say
        self._steps: dict[tuple[str, int], FineTuneStep] = {}

    def fit(
        self,
        trained: str,
        base: Params,
        start: Any,
        pairs: Pairs,
        rates: np.ndarray,
        *,
        epochs: int,
        cycle: int,
        seed: int,
        snapshot: Path,
    ) -> Fitted:
        """Trains on pairs, of which the answers count.

        Args:
            trained: what is: `full` (all weights) or `lora` (adapters).
            base, start: weights that stay as they are, and what is trained, before the first step.
            pairs: questions and answers.
            rates: learning rate of every step.
            epochs: passes over the pairs.
            cycle: for the order of the pairs, and for what is said.
            seed: of dropout.
            snapshot: where the state is saved on the way; one that is there is gone on from.

        Raises:
            Interrupted: once a snapshot of where it stopped is saved. NonFiniteError: at a step that is not finite.
        """
        config = self._config
        step = self._step(trained, len(rates))
        order = batches(rows_of(pairs, self._width), config.raft.batch_size, epochs, (config.seed, cycle))

        def pause(done: int) -> bool:
            self._progress(done, len(rates), "steps")
            return self._interrupts.requested is not None

        fitted = fit(
            step,
            base,
            start,
            order,
            rates,
            random_key(seed),
            micro_batches=config.raft.accum_steps,
            snapshot=snapshot,
            every=config.checkpoint.every,
            pause=pause,
            say=self._say,
        )
        if fitted is None:
            self._stop_if_asked(f"while training in cycle {cycle}")
        return fitted

    def write(
        self,
        params: Params,
        prompts: Sequence[tuple[int, bytes]],
        *,
        samples: int,
        sampling: SamplingConfig,
        seed: int,
        done: int = 0,
        doing: str,
        unit: str,
    ) -> Iterator[list[bytes]]:
        """Yields completions batch after batch, `samples` of every (number, prompt) in turn; see `complete`.

        Args:
            done: completions that there are already, a whole number of batches.
            doing, unit: for what is said: "sampling in cycle 3", and what is counted.

        Raises:
            Interrupted: after a batch that was yielded.
        """
        rows, total = self._config.raft.rows, len(prompts) * samples
        for batch in complete(
            self._decoder,
            params,
            prompts,
            samples=samples,
            longest=self._longest_answer,
            sampling=sampling,
            seed=seed,
            rows=rows,
            first_batch=done // rows,
        ):
            yield batch
            done += len(batch)
            self._progress(done, total, unit)
            self._stop_if_asked(f"while {doing}")

    def answer_loss(self, params: Params, pairs: Pairs) -> float:
        """Nats per byte of the answers."""
        return self._answer_loss(params, rows_of(pairs, self._width))

    def _step(self, trained: str, steps: int) -> FineTuneStep:
        """The training step, compiled once for all cycles unless the optimizer depends on their length."""
        length = steps if trained == "full" and OPTIMIZERS[self._config.optim.name].depends_on_length else 1
        if (trained, length) not in self._steps:
            self._steps[trained, length] = make_fine_tune_step(
                self._graph,
                self._low_pass,
                raft_parts.optimizer_of(self._config, trained, length),
                lora=self._lora if trained == "lora" else None,
                model_dropout=self._config.model.dropout > 0,
                skip_nonfinite=self._config.train.skip_nonfinite,
                precision=self._config.model.precision,
                ema_decay=self._config.optim.ema_decay,
                mesh=self._mesh,
            )
        return self._steps[trained, length]

    def _stop_if_asked(self, where: str) -> None:
        if self._interrupts.requested is not None:
            name = signal.Signals(self._interrupts.requested).name
            raise Interrupted(
                f"{name} {where}; what was done is saved, and the same command goes on from there",
                self._interrupts.requested,
            )


_BLOCK = 16  # Bytes between two looks at whether all rows have ended.


def complete(
    decoder: Decoder,
    params: Params,
    prompts: Sequence[tuple[int, bytes]],
    *,
    samples: int,
    longest: int,
    sampling: SamplingConfig,
    seed: int,
    rows: int,
    first_batch: int = 0,
) -> Iterator[list[bytes]]:
    """Yields batch after batch: the completions of every prompt in turn, `samples` of each, by the cached decoder.

    A completion ends with, and includes, its first END; without one within `longest` bytes it is cut there.

    Args:
        decoder, params: of the model.
        prompts: (number, prompt). A completion is a function of the seed, its prompt's number, its own number among the
            samples and the prompt (to round-off): neither the other prompts nor `rows` matter.
        samples: completions per prompt.
        longest: bytes of a completion, at most.
        sampling: how bytes are chosen.
        seed: of all completions.
        rows: completions side by side; the last batch is filled up, so that nothing is compiled for it.
        first_batch: batch to begin with.
    """
    texts = [prompt for _, prompt in prompts for _ in range(samples)]
    numbers = [number * samples + i for number, _ in prompts for i in range(samples)]
    for first in range(first_batch * rows, len(texts), rows):
        batch, ids = texts[first : first + rows], numbers[first : first + rows]
        filler = rows - len(batch)
        blocks = decoder.stream(
            params,
            batch + batch[:1] * filler,
            longest,
            sampling,
            seed=seed,
            rows=ids + ids[:1] * filler,
            block=min(_BLOCK, longest),
        )
        yield _until_ended(blocks, len(batch))


def _until_ended(blocks: Iterator, rows: int) -> list[bytes]:
    written = [b""] * rows
    for block in blocks:
        written = [text if END in text else text + new for text, new in zip(written, block.written)]
        if all(END in text for text in written):
            break
    return [text[: text.index(END) + 1] if END in text else text for text in written]
