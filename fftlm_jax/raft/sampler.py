"""Completions of many prompts by the cached decoder, a batch of rows at a time, each row reproducible by itself.

A completion ends with, and includes, its first END; without one within `longest` bytes it is cut there.
"""

from collections.abc import Iterator, Sequence

from fftlm_jax.generation import Decoder, SamplingConfig
from fftlm_jax.model.language_model import Params
from fftlm_jax.raft.tasks import END

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
    """Yields batch after batch: the completions of every prompt in turn, `samples` of each.

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
