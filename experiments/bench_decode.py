"""Suite `decode` of `experiments.bench`: what a byte of generated text costs, by mode and by its place."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx

from configs import aligned
from experiments.interleaved import Row, compare
from fftlm_jax.checkpoints import saved_run
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import ModelConfig
from fftlm_jax.generation import DecodedBytes, Decoder, SamplingConfig
from fftlm_jax.model import build, init_params
from fftlm_jax.model.language_model import Params, evaluation_low_pass
from fftlm_jax.spectral import LowPass

_SAMPLING = SamplingConfig(temperature=0.8)
_BLOCK = 64  # Bytes per call.
_FOREVER = 1 << 30


def bench_decode(rounds: int, workdir: str | None = None) -> list[Row]:
    """The model of `aligned`, one text: full passes against a cached state, chunks against bytes, late against early.

    Those in float32; then bfloat16 against it, one text and eight side by side.

    Args:
        rounds: turns of each side.
        workdir: a trained run with a chunk head. How many drafted bytes stand depends on the weights, so speculative
            decoding is measured there or not at all.
    """
    values = aligned.get_config()
    values.model.dtype = "float32"
    run = read_config(values, with_data=False)
    config, graph, params = run.model, build(run.model)[0], init_params(run.model, 0)
    decoder = Decoder(config, graph, evaluation_low_pass(run, cutoff=1))
    low = dataclasses.replace(config, dtype="bfloat16")
    low_decoder = Decoder(low, build(low)[0], decoder.low_pass)

    def stream(mode: str = "byte", first: int = 256, rows: int = 1, by: Decoder = decoder) -> Iterator[DecodedBytes]:
        """Blocks of texts, after so many bytes were read or written."""
        blocks = by.stream(params, [b"x" * 256] * rows, _FOREVER, _SAMPLING, mode=mode, block=_BLOCK)
        return itertools.islice(blocks, (first - 256) // _BLOCK, None)

    cached, chunks, early, late = stream(), stream("chunk"), stream(), stream(first=8192)
    name = f"aligned ({config.n_layers} layers of {config.d_model}): a byte"
    cached_sides = {"cached": lambda: next(cached), "chunk of 16": lambda: next(chunks)}
    full = {"recompute 1024": recomputed_byte(config, graph, params, decoder.low_pass)}
    places = {"from 8192 on": lambda: next(late), "from 256 on": lambda: next(early)}
    units = {side: _BLOCK for side in (*cached_sides, *places)}
    rows = [
        compare(label, sides, rounds, per="byte", units=units)
        for label, sides in (
            (name, {**full, **cached_sides}),
            (f"{name}, cached", cached_sides),
            (f"{name}, cached, by its place", places),
        )
    ]
    for texts in (1, 8):
        for mode in ("byte", "chunk"):
            streams = {kind.config.dtype: stream(mode, rows=texts, by=kind) for kind in (decoder, low_decoder)}
            sides = {dtype: functools.partial(next, blocks) for dtype, blocks in streams.items()}
            label = f"{name}, cached, {texts} {'texts' if texts > 1 else 'text'}, {mode} by {mode}"
            rows.append(compare(label, sides, rounds, per="byte", units=dict.fromkeys(sides, _BLOCK)))
    return rows + ([drafts_of(workdir, rounds)] if workdir else [])


def recomputed_byte(
    config: ModelConfig, graph: nnx.GraphDef, params: Params, low_pass: LowPass
) -> Callable[[], jax.Array]:
    """A function that finds the logits of one more byte by a pass over the whole window."""

    @jax.jit
    def next_logits(params: Params, bytes_BT: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        return model.head.next_byte(model(bytes_BT, low_pass)[:, -1])

    window = np.full((1, config.seq_len), ord("x"), np.uint8)
    return lambda: next_logits(params, window)


def drafts_of(workdir: str, rounds: int) -> Row:
    """Speculative decoding of a trained run against byte by byte, and how many of its drafted bytes stand."""
    saved = saved_run.load(workdir, "best")
    decoder = Decoder(saved.config.model, build(saved.config.model)[0], saved.low_pass)
    streams = {
        mode: decoder.stream(saved.params, [b"def "], _FOREVER, _SAMPLING, mode=mode, block=256)
        for mode in ("byte", "speculative")
    }
    drafted = accepted = 0

    def speculative() -> None:
        nonlocal drafted, accepted
        block = next(streams["speculative"])
        drafted, accepted = drafted + block.drafted, accepted + block.accepted

    row = compare(
        f"trained run {saved.config.model.n_layers} layers of {saved.config.model.d_model}, step {saved.step}",
        {"byte by byte": lambda: next(streams["byte"]), "speculative": speculative},
        rounds,
        per="byte",
        units={"byte by byte": 256, "speculative": 256},
    )
    return {**row, "drafted bytes that stood": f"{accepted / drafted:.1%}"}
