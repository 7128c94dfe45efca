"""Bits per byte on held-out text, each byte scored once."""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from flax import nnx

from fftlm_jax.config import Config
from fftlm_jax.data import EvaluationBatch
from fftlm_jax.model import objective_value, score
from fftlm_jax.model.language_model import Params
from fftlm_jax.spectral import LowPass

Evaluate = Callable[[Params, Iterable[EvaluationBatch]], dict[str, float]]


def make_evaluate(config: Config, graph: nnx.GraphDef, low_pass: LowPass) -> Evaluate:
    """Builds the evaluation for one band limit.

    Returns:
        `evaluate(params, batches)` -> `bpb` (bits per byte of head 0), `loss` (the training objective, nats) and,
        where the objective trains the chunk head, `chunk_bpb`. Under the `signal` method only the last position of
        each window is scored, since all others see their future.
    """
    is_chunk = config.objective.name == "chunk"
    last_only = low_pass.method == "signal"  # At every cutoff, or bpb would change its meaning at the last raise.

    @jax.jit
    def totals(params: Params, windows_BW: jax.Array, valid_B: jax.Array) -> jax.Array:
        scores = score(
            graph,
            params,
            windows_BW,
            low_pass,
            chunk=config.model.chunk,
            with_chunk=is_chunk,
            last_only=last_only,
            valid_B=valid_B,
        )
        sums = [jnp.sum(scores.next_byte_BT * scores.next_byte_weight_BT), jnp.sum(scores.next_byte_weight_BT)]
        if is_chunk:
            sums += [jnp.sum(scores.chunk_BNC * scores.chunk_weight_BNC), jnp.sum(scores.chunk_weight_BNC)]
        return jnp.stack(sums)

    def evaluate(params: Params, batches: Iterable[EvaluationBatch]) -> dict[str, float]:
        # Summed on the host in float64: a float32 sum over millions of bytes would lose digits.
        sums = [jax.device_get(totals(params, batch.windows, batch.valid)).astype(float) for batch in batches]
        next_byte, count, *chunk = sum(sums)
        next_byte_loss = float(next_byte / count)
        chunk_loss = float(chunk[0] / chunk[1]) if is_chunk else 0.0
        loss = objective_value(config.objective, next_byte_loss, chunk_loss)
        result = {"bpb": next_byte_loss / math.log(2), "loss": loss}
        return {**result, "chunk_bpb": chunk_loss / math.log(2)} if is_chunk else result

    return evaluate
