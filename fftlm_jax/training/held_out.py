"""What a run looks at now and then: its scores on held-out text, and what it writes."""

from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fftlm_jax.config import Config
from fftlm_jax.data import ByteSequence, evaluation_batches
from fftlm_jax.generation import Decoder, PlainDecoder, decoder_for, sampling_of
from fftlm_jax.model.language_model import Params
from fftlm_jax.parallel import is_first_process, one_copy, round_up_rows
from fftlm_jax.training.evaluation import (
    Evaluate,
    Tally,
    bpb_by_word_place,
    chunk_bpb_by_offset,
    make_evaluate,
    summary,
)
from fftlm_jax.training.setup import evaluation_low_pass
from fftlm_jax.training.step import TrainState, averaged_params


class HeldOut:
    """Evaluation and sampling of one run, compiled once per band limit that they need.

    On a mesh the scores are the work of all devices. Samples are that of one, which then holds all weights.
    """

    def __init__(self, config: Config, graph: nnx.GraphDef, data: ByteSequence, mesh: Mesh | None = None) -> None:
        self._config = config
        self._mesh = mesh
        self._graph = graph
        self._data = data[: config.eval.max_bytes or None]
        self._compiled: dict[tuple[str, int], tuple[Evaluate, Decoder | PlainDecoder]] = {}

    def scores(self, state: TrainState, cutoff: int) -> dict[str, Any]:
        """Scores of the held-out part (see `evaluation.summary`), rounded to six digits.

        `bpb_by_word_place` gives the first and inner bytes of words apart, `chunk_bpb_by_offset` the bytes of a chunk.
        With `optim.ema_decay`, `ema_...` are those of the weights' average.
        """
        tally = self.tally(state.params, cutoff)
        scores: dict[str, Any] = summary(tally, self._config.objective)
        if state.ema is not None:
            average = summary(self.tally(averaged_params(self._config, state.ema), cutoff), self._config.objective)
            scores |= {f"ema_{name}": value for name, value in average.items()}
        scores = {name: round(value, 6) for name, value in scores.items()}
        scores["bpb_by_word_place"] = {name: round(value, 4) for name, value in bpb_by_word_place(tally).items()}
        if tally.chunk_NC is not None:
            scores["chunk_bpb_by_offset"] = np.round(chunk_bpb_by_offset(tally), 4).tolist()
        return scores

    def tally(self, params: Params, cutoff: int) -> Tally:
        """Losses of the held-out part, by place."""
        model = self._config.model
        batch_size = round_up_rows(self._config.eval.batch_size, self._mesh)
        batches = evaluation_batches(self._data, model.seq_len, model.chunk, batch_size)
        return self._at(cutoff)[0](params, batches)

    def sample(self, params: Params, cutoff: int) -> bytes:
        """What the model writes after `sample.prompt`, without the prompt."""
        s = self._config.sample
        if not s.bytes:
            return b""
        decoder, prompt, params = self._at(cutoff)[1], s.prompt.encode(), one_copy(params, self._mesh)
        if not is_first_process():
            return b""  # Nobody would read it.
        return decoder.generate(params, [prompt], s.bytes, sampling_of(s), seed=self._config.seed, mode=s.mode)[0]

    def _at(self, cutoff: int) -> tuple[Evaluate, Decoder | PlainDecoder]:
        low_pass = evaluation_low_pass(self._config, cutoff)
        key = low_pass.mask_key(self._config.model.kernel_len)
        if key not in self._compiled:
            evaluate = make_evaluate(self._config, self._graph, low_pass, self._mesh)
            self._compiled[key] = evaluate, decoder_for(self._config.model, self._graph, low_pass)
        return self._compiled[key]
