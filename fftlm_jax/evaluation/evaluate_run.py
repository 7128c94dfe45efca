"""Measures how well a saved run predicts held-out text, and what it writes itself.

    fftlm evaluate runs/quickstart
    fftlm evaluate runs/quickstart --step=last --text=other.txt --generate=0

Prints bits per byte, of next-byte prediction and of chunks at once, by position in the window, by offset in the chunk
and by length of context; of generated text, how much is copied from the training text and how much repeats, beside
the same of real text. Writes the numbers and a picture into the run directory (evaluation_<step>.json and .png).
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.checkpoints.saved_run import SavedRun
from fftlm_jax.data import ByteSequence, Corpus, bytes_of_files, evaluation_batches
from fftlm_jax.data.corpus import load_run_corpus
from fftlm_jax.data.formats import format_of
from fftlm_jax.data.unpacked import TextOptions, unpacked
from fftlm_jax.evaluation.generated_text import SHORTEST_TEXT, generate
from fftlm_jax.evaluation.held_out_bpb import Tally, make_evaluate
from fftlm_jax.evaluation.results import context_results, draw, generated_results, results, table
from fftlm_jax.model import build
from fftlm_jax.runtime.errors import CheckpointError, DataError, SaveError, UsageError
from fftlm_jax.runtime.process import CommandParser, path_option, run_command
from fftlm_jax.runtime.untrusted import read_json


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    args = _parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def tally_of(saved: SavedRun, text: ByteSequence) -> Tally:
    """Losses of a saved run on a text, by place; every byte but the first is scored once.

    Under the `signal` method only the last position of each window is, which sees no future.
    """
    model, graph = saved.config.model, build(saved.config.model)[0]
    evaluate = make_evaluate(saved.config, graph, saved.low_pass)
    size = saved.config.eval.batch_size
    batches = evaluation_batches(text, model.seq_len, model.chunk, size)
    total = math.ceil((len(text) - 1) / (model.seq_len * size))
    # On terminals, where it takes a while.
    bar = tqdm(batches, "scoring", total, unit="batch", leave=False, delay=3, disable=None)
    return evaluate(saved.params, bar)


def _parser() -> CommandParser:
    parser = CommandParser("fftlm evaluate", __doc__)
    parser.add_run()
    parser.add_argument("--step", default="best", help="best (lowest bpb of the raw weights), last, or a number")
    parser.add_argument("--ema", action="store_true", help="the running average of the weights (optim.ema_decay)")
    parser.add_argument("--text", type=path_option, help="score this whole file in place of the run's held-out part")
    parser.add_argument("--max_bytes", type=int, default=0, help="of the text, from its beginning; 0 for all of it")
    parser.add_argument("--contexts", type=int, default=1024, help="bytes for bpb by length of context; 0 for none")
    parser.add_argument("--generate", type=int, default=4096, help="bytes to generate and compare; 0 for none")
    parser.add_argument("--out", type=path_option, help="where to write; default evaluation_<step> in the run")
    return parser


def _run(args: argparse.Namespace) -> None:
    _check(args)
    if args.out:
        _outputs(args.out)  # Refused before the work.
    saved = saved_run.load(args.workdir, args.step, averaged=args.ema)
    corpus, corpus_notes = _corpus(args, saved)
    text = _text(args, saved, corpus)
    tally = tally_of(saved, text)
    by_context, context_notes = _by_context(args, saved, text)
    generation, generation_notes = _generation(args, saved, text, corpus)
    found = {
        "weights": "average" if args.ema else "raw",
        "text": str(args.text or "held out"),
        **results(saved, tally, len(text)),
        "by_context": by_context,
        "generation": generation,
        "notes": [*corpus_notes, *context_notes, *generation_notes],
    }
    out = args.out or args.workdir / _default_name(args, saved)
    numbers, picture = _outputs(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps(found, indent=1) + "\n")
        draw(tally, found, picture, f"{args.workdir.resolve().name}: step {saved.step}, bpb {found['bpb']:.3f}")
    except OSError as error:
        raise SaveError(f"{out}: cannot be written ({error.strerror or error}).") from error
    finally:
        print(table(found, tally))  # A folder that takes nothing must not cost the result.
    print(f"\nsee {picture} and {numbers}")


def _outputs(out: Path) -> tuple[Path, Path]:
    """The files of numbers and picture.

    Raises:
        UsageError: where they would replace what no evaluation wrote.
    """
    if not out.name:
        raise UsageError(f"--out: {out} is no name of a file; name one, without its ending.")
    numbers, picture = (out.with_name(f"{out.name}{ending}") for ending in (".json", ".png"))
    if numbers.exists():
        try:
            is_ours = "by_context" in read_json(numbers)
        except (OSError, ValueError, TypeError):
            is_ours = False
        if not is_ours:
            raise UsageError(f"--out: {numbers} is there and no evaluation; name another.")
    return numbers, picture


def _check(args: argparse.Namespace) -> None:
    for name, ok, rule in (
        ("max_bytes", args.max_bytes >= 0, "at least 0"),
        ("contexts", args.contexts >= 0, "at least 0"),
        ("generate", args.generate == 0 or args.generate >= SHORTEST_TEXT, f"0, or at least {SHORTEST_TEXT}"),
    ):
        if not ok:
            raise UsageError(f"--{name}: must be {rule}, not {getattr(args, name)}.")


def _by_context(
    args: argparse.Namespace, saved: SavedRun, text: ByteSequence
) -> tuple[dict[str, Any] | None, list[str]]:
    if not args.contexts:
        return None, []
    if saved.low_pass.method == "signal":
        return None, ["No bpb by length of context: the signal method filters whole windows and knows no shorter ones."]
    model = saved.config.model
    note = f"The memory cuts its pieces from a context's first byte on; below {model.memory_piece} bytes it is empty."
    return context_results(saved, text, args.contexts), [note] if model.memory != "none" else []


def _generation(
    args: argparse.Namespace, saved: SavedRun, text: ByteSequence, corpus: Corpus | None
) -> tuple[dict[str, Any] | None, list[str]]:
    if not args.generate:
        return None, []
    generated = generate(saved, text, args.generate)
    if generated is None:
        why = f"{len(text)} bytes hold no prompt and {args.generate} bytes to compare with"
        return None, [f"No generated text: {why}; give a longer text or a smaller --generate."]
    return generated_results(saved, generated, None if corpus is None else corpus.train), []


def _default_name(args: argparse.Namespace, saved: SavedRun) -> str:
    """Tells apart what was evaluated, so that no evaluation replaces another kind."""
    parts = ["evaluation", str(saved.step)]
    parts += ["ema"] if args.ema else []
    parts += [args.text.name] if args.text else []
    parts += [f"{args.max_bytes}bytes"] if args.max_bytes else []
    return "_".join(parts)


def _corpus(args: argparse.Namespace, saved: SavedRun) -> tuple[Corpus | None, list[str]]:
    """The run's corpus. Where it is gone or changed and --text stands in for it, None and a note."""
    if args.text and not args.generate:
        return None, []
    if saved.config.task == "raft" and not args.text:
        raise UsageError("--text: a fine-tuned run has no text of its own to be scored on; name one.")
    no_copies = "No copies from the training text were looked for:"
    try:
        corpus = load_run_corpus(saved.config)
    except DataError as error:
        if not args.text:
            raise
        return None, [f"{no_copies} {error}"]
    if corpus.fingerprint == saved.corpus:
        return corpus, []
    fingerprints = f"{saved.corpus[:12]} -> {corpus.fingerprint[:12]}, of the names and bytes of its files"
    changed = f"the corpus differs from the run's (fingerprint {fingerprints})"
    if args.text:
        return None, [f"{no_copies} {changed}."]
    raise CheckpointError(
        f"{changed}, so its held-out part may have been trained on; bring the old bytes back under "
        "their old names, or name a --text."
    )


def _files_of(text: Path, saved: SavedRun) -> list[Path]:
    """The file of a text, or those that a packed one unpacks to."""
    data = saved.config.data
    kind = format_of(text.name, data.text_field)
    if kind.is_plain:
        return [text]
    options = TextOptions(data.text_field, data.separator, data.cache)
    try:
        return [part.file for part in unpacked(text.name, text, kind, data.held_out, options)]
    except DataError as error:  # It takes every packed file for a corpus.
        raise DataError(str(error).replace("data.path:", "--text:", 1)) from None


def _text(args: argparse.Namespace, saved: SavedRun, corpus: Corpus | None) -> ByteSequence:
    text = bytes_of_files(_files_of(args.text, saved), "--text") if args.text else corpus.held_out
    text = text[: args.max_bytes or None]
    window = saved.config.model.seq_len + saved.config.model.chunk
    if len(text) < window:
        raise UsageError(f"the text of {len(text)} bytes holds no window of {window}; give a longer one.")
    return text
