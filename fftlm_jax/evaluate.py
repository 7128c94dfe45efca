"""`python -m fftlm_jax.evaluate RUN_DIR`: how well a saved run predicts held-out text, and where in a window it does.

    python -m fftlm_jax.evaluate runs/quickstart
    python -m fftlm_jax.evaluate runs/quickstart --step=last --text=other.txt

Prints bits per byte, of next-byte prediction and of chunks at once, by position in the window and by offset in the
chunk; writes the numbers and a picture into the run directory (evaluation_<step>.json and .png).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fftlm_jax.command_line import run_command
from fftlm_jax.data import evaluation_batches
from fftlm_jax.errors import CheckpointError, SaveError, UsageError
from fftlm_jax.evaluation_figure import draw
from fftlm_jax.model import build
from fftlm_jax.model.word_places import WORD_PLACES
from fftlm_jax.training import saved_run
from fftlm_jax.training.evaluation import (
    Tally,
    bpb_by_position,
    bpb_by_range,
    bpb_by_word_place,
    chunk_bpb_by_offset,
    make_evaluate,
    summary,
)
from fftlm_jax.training.saved_run import SavedRun
from fftlm_jax.training.setup import load_run_corpus

_RANGES = 8  # Rows of the table of positions.


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.errors`."""
    args = _parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def tally_of(saved: SavedRun, text: np.ndarray) -> Tally:
    """Losses of a saved run on a text, by place; every byte but the first is scored once.

    Under the `signal` method only the last position of each window is, which sees no future.
    """
    model, graph = saved.config.model, build(saved.config.model)[0]
    evaluate = make_evaluate(saved.config, graph, saved.low_pass)
    batches = evaluation_batches(text, model.seq_len, model.chunk, saved.config.eval.batch_size)
    return evaluate(saved.params, batches)


def results(saved: SavedRun, tally: Tally, text_bytes: int) -> dict[str, Any]:
    """Everything about one evaluation, as JSON takes it; positions and offsets count from 1 byte ahead of the input."""
    found: dict[str, Any] = {
        "step": saved.step,
        "text_bytes": text_bytes,
        "next_bytes_scored": int(tally.next_byte_count_T.sum()),
        **{name: round(value, 6) for name, value in summary(tally, saved.config.objective).items()},
        "bpb_by_position": _rounded(bpb_by_position(tally)),
        "bpb_by_word_place": dict(zip(WORD_PLACES, _rounded(np.array(list(bpb_by_word_place(tally).values()))))),
    }
    if tally.chunk_NC is not None:
        found["chunk_bytes_scored"] = int(tally.chunk_count_NC.sum())
        found["chunk_bpb_by_offset"] = _rounded(chunk_bpb_by_offset(tally))
    return found


def table(found: dict[str, Any], tally: Tally) -> str:
    """The results as lines of text."""
    lines = [
        f"step {found['step']}, {found['text_bytes']:,} bytes of text",
        f"bpb        {found['bpb']:.4f}   next byte, {found['next_bytes_scored']:,} bytes, each scored once",
    ]
    if "chunk_bpb" in found:
        size = len(found["chunk_bpb_by_offset"])
        count = f"{found['chunk_bytes_scored']:,} bytes, each scored once"
        lines.append(f"chunk bpb  {found['chunk_bpb']:.4f}   {size} bytes at once, {count}")
    lines += ["", "place in the word        bpb"]
    lines += [f"{name:>22}   " + _cell(bits) for name, bits in found["bpb_by_word_place"].items()]
    lines += ["", "position in the window   bpb"]
    lines += [f"{f'{first} to {last}':>22}   {bits:.4f}" for first, last, bits in bpb_by_range(tally, _RANGES)]
    if "chunk_bpb_by_offset" in found:
        lines += ["", "byte of the chunk        bpb"]
        lines += [f"{offset:>22}   " + _cell(bits) for offset, bits in enumerate(found["chunk_bpb_by_offset"], start=1)]
    return "\n".join(lines)


def _cell(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.4f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fftlm_jax.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="run directory")
    parser.add_argument("--step", default="best", help="best (lowest bpb of the raw weights), last, or a number")
    parser.add_argument("--ema", action="store_true", help="the running average of the weights (optim.ema_decay)")
    parser.add_argument("--text", help="score this whole file in place of the run's held-out part")
    parser.add_argument("--max_bytes", type=int, default=0, help="of the text, from its beginning; 0 for all of it")
    parser.add_argument("--out", type=Path, help="where to write; by default evaluation_<step> in the run directory")
    return parser


def _run(args: argparse.Namespace) -> None:
    saved = saved_run.load(args.workdir, args.step, averaged=args.ema)
    text = _text(args, saved)
    tally = tally_of(saved, text)
    found = results(saved, tally, len(text))
    what = {"weights": "average" if args.ema else "raw", "text": args.text or "held out"}
    out = args.out or Path(args.workdir) / _default_name(args, saved)
    numbers, picture = (out.with_name(f"{out.name}{ending}") for ending in (".json", ".png"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps({**what, **found}, indent=1) + "\n")
        draw(tally, picture, f"{Path(args.workdir).resolve().name}: step {saved.step}, bpb {found['bpb']:.3f}")
    except OSError as error:
        raise SaveError(f"{out}: cannot be written ({error.strerror}).") from error
    print(f"{table(found, tally)}\n\nsee {picture} and {numbers}")


def _default_name(args: argparse.Namespace, saved: SavedRun) -> str:
    """Tells apart what was evaluated, so that no evaluation replaces another kind."""
    parts = ["evaluation", str(saved.step)]
    parts += ["ema"] if args.ema else []
    parts += [Path(args.text).stem] if args.text else []
    parts += [f"{args.max_bytes}bytes"] if args.max_bytes else []
    return "_".join(parts)


def _text(args: argparse.Namespace, saved: SavedRun) -> np.ndarray:
    if args.max_bytes < 0:
        raise UsageError(f"--max_bytes: must be at least 0, not {args.max_bytes}.")
    if args.text:
        try:
            text = np.fromfile(args.text, np.uint8)
        except OSError as error:
            raise UsageError(f"--text: {args.text} cannot be read ({error.strerror}); name a file.") from None
    else:
        corpus = load_run_corpus(saved.config)
        if corpus.fingerprint != saved.corpus:
            raise CheckpointError(
                f"the corpus differs from the run's (fingerprint {saved.corpus[:12]} -> {corpus.fingerprint[:12]}), so "
                "its held-out part may have been trained on; bring the old bytes back, or name a --text."
            )
        text = corpus.held_out
    text = text[: args.max_bytes or None]
    window = saved.config.model.seq_len + saved.config.model.chunk
    if len(text) < window:
        raise UsageError(f"the text of {len(text)} bytes holds no window of {window}; give a longer one.")
    return text


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


if __name__ == "__main__":
    sys.exit(main())
