"""Continues a prompt with a trained run, on the terminal as the bytes arrive.

    fftlm generate runs/quickstart --prompt="def main(" --bytes=300
    fftlm generate runs/small --prompt_file=begin.py --mode=speculative --stats
    fftlm generate runs/small --interactive

Without --prompt and --prompt_file the prompt is read from stdin, unless that is a terminal. What is written is escaped
where it could drive the terminal, unless --raw.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.checkpoints.saved_run import SavedRun
from fftlm_jax.generation.cached_decoding import MODES, Decoder, decoder_for
from fftlm_jax.generation.plain_decoding import PlainDecoder
from fftlm_jax.generation.sampling import DecodedBytes, SamplingConfig
from fftlm_jax.generation.text import TerminalText, argument_bytes, until_stopped
from fftlm_jax.model import build
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.process import CommandParser, path_option, run_command
from fftlm_jax.runtime.streams import is_terminal, print_line, read_bytes


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    args = _parser().parse_args(arguments)
    code = run_command(lambda: _run(args))
    if code == 130:  # Enough was read; what comes next shall begin a line.
        run_command(print)
    return code


def _parser() -> CommandParser:
    parser = CommandParser("fftlm generate", __doc__)
    add = parser.add_argument
    parser.add_run()
    add("--step", default="best", help="best (lowest bpb), last, or a step number")
    add("--ema", action="store_true", help="the running average of the weights (optim.ema_decay)")
    add("--prompt", help="text to continue; read as UTF-8")
    add("--prompt_file", type=path_option, help="file to continue; any bytes")
    add("--bytes", type=int, default=256, help="how many bytes to write")
    add("--samples", type=int, default=1, help="how many continuations; more than one are shown when all are done")
    add("--mode", choices=MODES, default="byte", help="byte; chunk: a chunk at once; speculative: byte, but faster")
    add("--temperature", type=float, default=0.8, help="0 is greedy")
    add("--top_k", type=int, default=0, help="keep the k likeliest bytes; 0 keeps all")
    add("--top_p", type=float, default=0.95, help="keep the likeliest bytes of this probability")
    add("--min_p", type=float, default=0.0, help="keep bytes at least this many times as probable as the likeliest")
    add("--repetition_penalty", type=float, default=1.0, help="above 1: fewer repeated bytes")
    add("--repetition_window", type=int, default=64, help="bytes that the penalty looks back on")
    add("--longest_run", type=int, default=0, help="no byte more often than this in a row; 0 for no limit")
    add("--ascii", action="store_true", help="printable ASCII, tab and newline only")
    add("--ban", default="", help="characters never written (all bytes of their UTF-8)")
    add("--stop", action="append", default=[], help="end before this text; may be repeated (a newline: $'\\n')")
    add("--escapes", action="store_true", help="read \\n, \\t, \\\\ and \\x0a in --prompt and --stop as Python does")
    add("--seed", type=int, default=0)
    add("--raw", action="store_true", help="bytes as they are; terminals obey what they say")
    add("--interactive", action="store_true", help="go on from every line that is typed, until end of file")
    add("--stats", action="store_true", help="bytes per second and how many drafted bytes stood, on stderr")
    return parser


def _run(args: argparse.Namespace) -> None:
    sampling = _checked(args)
    saved = saved_run.load(args.workdir, args.step, averaged=args.ema)
    writer = Writer(args, saved, sampling)
    if args.interactive:
        _converse(args, writer)
        return
    prompt = _prompt(args)
    print(f"step {saved.step}", file=sys.stderr)
    writer.write(prompt, turn=0, show_prompt=True)


class Writer:
    """Writes continuations to stdout."""

    def __init__(self, args: argparse.Namespace, saved: SavedRun, sampling: SamplingConfig) -> None:
        self._args, self._params, self._sampling = args, saved.params, sampling
        model = saved.config.model
        self._decoder: Decoder | PlainDecoder = decoder_for(model, build(model)[0], saved.low_pass)
        if args.mode != "byte" and isinstance(self._decoder, PlainDecoder):
            raise UsageError(f"--mode: a signal mask is decoded byte by byte, not by {args.mode!r}; use 'byte'.")
        if args.mode != "byte" and not saved.config.objective.has_chunks:
            raise UsageError(f"--mode: {args.mode!r} needs a chunk head, and this run trained none; use 'byte'.")

    def write(self, prompt: bytes, *, turn: int, show_prompt: bool) -> bytes:
        """Shows what follows a prompt and returns it (the last of several samples).

        Args:
            prompt: what to continue.
            turn: tells apart the random numbers of the turns of a conversation.
            show_prompt: show it before its continuation.
        """
        args, count = self._args, self._args.samples
        stops = [argument_bytes(stop, "--stop", args.escapes) for stop in args.stop]
        if args.stats:
            # Compiles. A plain decoder does so for every length.
            list(self._blocks(prompt, turn, args.bytes if isinstance(self._decoder, PlainDecoder) else 1))
        start, tally = time.perf_counter(), _ByteCounter()
        pieces = until_stopped(tally.watch(self._blocks(prompt, turn, args.bytes)), count, stops)
        begin = prompt if show_prompt else b""
        if count == 1:
            written = self._show(begin, (row for (row,) in pieces))
        else:
            for number, row in enumerate(zip(*pieces), start=1):
                before = "\n" if args.raw and number > 1 else ""  # Raw bytes need not end with a newline.
                print(f"{before}=== sample {number}", flush=True)
                written = self._show(begin, row)
        if args.stats:
            print(tally.report(time.perf_counter() - start), file=sys.stderr)
        return written

    def _blocks(self, prompt: bytes, turn: int, length: int) -> Iterator[DecodedBytes]:
        count, seed, mode = self._args.samples, self._args.seed, self._args.mode
        rows = range(turn * count, (turn + 1) * count)
        return self._decoder.stream(
            self._params, [prompt] * count, length, self._sampling, seed=seed, mode=mode, rows=rows
        )

    def _show(self, begin: bytes, pieces: Iterable[bytes]) -> bytes:
        terminal, shown = TerminalText(), []

        def put(data: bytes, final: bool = False) -> None:
            if self._args.raw and hasattr(sys.stdout, "buffer"):  # What notebooks put there takes text only.
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                print_line(terminal.feed(data, final=final), sys.stdout, end="")

        put(begin)
        for piece in pieces:
            put(piece)
            shown.append(piece)
        put(b"" if self._args.raw else b"\n", final=True)
        return b"".join(shown)


class _ByteCounter:
    """Counts the bytes that pass."""

    def __init__(self) -> None:
        self.written = self.drafted = self.accepted = 0

    def watch(self, blocks: Iterable[DecodedBytes]) -> Iterator[DecodedBytes]:
        """The blocks as they are."""
        for block in blocks:
            self.written += sum(map(len, block.written))
            self.drafted += block.drafted
            self.accepted += block.accepted
            yield block

    def report(self, seconds: float) -> str:
        """One line."""
        line = f"{self.written} bytes, {self.written / seconds:.0f} bytes/s (prompt included, compilation not)"
        return f"{line}, {self.accepted / self.drafted:.0%} of the drafted bytes stood" if self.drafted else line


def _converse(args: argparse.Namespace, writer: Writer) -> None:
    """Goes on from every line typed, each after all that was typed and written before, until end of file."""
    text = _prompt(args) if args.prompt is not None or args.prompt_file else b""
    for turn in itertools.count():
        if is_terminal(sys.stdin):
            print("> ", end="", flush=True)
        line = _from_stdin(line=True)
        if not line:
            return
        text += line
        text += writer.write(text, turn=turn, show_prompt=False)


def _prompt(args: argparse.Namespace) -> bytes:
    if args.prompt is not None:
        return argument_bytes(args.prompt, "--prompt", args.escapes)
    if args.prompt_file:
        try:
            return args.prompt_file.read_bytes()
        except OSError as error:
            raise UsageError(
                f"--prompt_file: {args.prompt_file} cannot be read ({error.strerror}); name a file."
            ) from None
    return b"" if is_terminal(sys.stdin) else _from_stdin()


def _from_stdin(*, line: bool = False) -> bytes:
    """All of standard input, or its next line; nothing where that was closed before the start.

    Raises:
        UsageError: if it cannot be read; `nohup` on a terminal leaves it so.
    """
    try:
        return read_bytes(sys.stdin, line=line)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"standard input cannot be read ({reason}); pass --prompt or --prompt_file.") from None


def _checked(args: argparse.Namespace) -> SamplingConfig:
    """The sampling rules of a command line.

    Raises:
        UsageError: for a value out of its range, or options that contradict each other.
    """
    for name, ok, rule in (
        ("bytes", args.bytes >= 1, "at least 1"),
        ("samples", 1 <= args.samples <= 2**16, "within 1 and 2**16"),
        ("temperature", 0 <= args.temperature < float("inf"), "a number, at least 0"),
        ("top_k", 0 <= args.top_k <= 256, "within 0 and 256"),
        ("top_p", 0 < args.top_p <= 1, "within 0 (exclusive) and 1"),
        ("min_p", 0 <= args.min_p <= 1, "within 0 and 1"),
        ("repetition_penalty", 0 < args.repetition_penalty < float("inf"), "a number greater than 0"),
        ("repetition_window", 1 <= args.repetition_window <= 2**24, "within 1 and 2**24"),
        ("longest_run", 0 <= args.longest_run <= 2**24, "within 0 and 2**24"),
        ("seed", 0 <= args.seed < 2**32, "within 0 and 2**32 - 1"),
        ("stop", all(args.stop), "a text of at least one byte"),
    ):
        if not ok:
            raise UsageError(f"--{name}: must be {rule}, not {getattr(args, name)}.")
    if args.prompt is not None and args.prompt_file:
        raise UsageError("--prompt_file: there is a --prompt already; give one of them.")
    if args.interactive and args.samples > 1:
        raise UsageError("--samples: an interactive text has one continuation; leave it out.")
    shared = {field.name for field in dataclasses.fields(SamplingConfig)} & set(vars(args))
    rules = {name: getattr(args, name) for name in shared}
    sampling = SamplingConfig(**rules, ascii_only=args.ascii, banned=os.fsencode(args.ban))
    if sampling.allowed.sum() < (2 if args.longest_run else 1):
        raise UsageError("--ban: too few bytes are left to write; ban fewer.")
    return sampling
