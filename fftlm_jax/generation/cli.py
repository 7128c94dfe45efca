"""`python -m fftlm_jax.generation`: continues a prompt with a trained run.

python -m fftlm_jax.generation --workdir=runs/quickstart --prompt="def main(" --bytes=300
"""

import argparse
import sys

from fftlm_jax.command_line import run_command
from fftlm_jax.errors import UsageError
from fftlm_jax.generation.decode import Decoder
from fftlm_jax.generation.sampling import SamplingConfig
from fftlm_jax.model import build
from fftlm_jax.training import saved_run


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.errors`."""
    args = _parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def terminal_text(data: bytes) -> str:
    """Bytes as text that cannot drive a terminal: everything but printable characters and newlines is escaped."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fftlm_jax.generation", description="Continue a prompt.")
    parser.add_argument("--workdir", required=True, help="run directory")
    parser.add_argument("--step", default="best", help="best (lowest bpb), last, or a step number")
    parser.add_argument("--ema", action="store_true", help="the running average of the weights (optim.ema_decay)")
    parser.add_argument("--prompt", default="", help="text to continue; read as UTF-8")
    parser.add_argument("--bytes", type=int, default=256, help="how many bytes to write")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    parser.add_argument("--top_k", type=int, default=0, help="keep the k likeliest bytes; 0 keeps all")
    parser.add_argument("--top_p", type=float, default=0.95, help="keep the likeliest bytes of this probability")
    parser.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1: fewer repeated bytes")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _run(args: argparse.Namespace) -> None:
    for name, ok, rule in (
        ("bytes", args.bytes >= 1, "at least 1"),
        ("temperature", 0 <= args.temperature < float("inf"), "a number, at least 0"),
        ("top_k", 0 <= args.top_k <= 256, "within 0 and 256"),
        ("top_p", 0 < args.top_p <= 1, "within 0 (exclusive) and 1"),
        ("repetition_penalty", 0 < args.repetition_penalty < float("inf"), "a number greater than 0"),
        ("seed", 0 <= args.seed < 2**32, "within 0 and 2**32 - 1"),
    ):
        if not ok:
            raise UsageError(f"--{name}: must be {rule}, not {getattr(args, name)}.")

    saved = saved_run.load(args.workdir, args.step, averaged=args.ema)
    graph, _ = build(saved.config.model)
    decoder = Decoder(saved.config.model, graph, saved.low_pass)
    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p, args.repetition_penalty)
    text = decoder.generate(saved.params, args.prompt.encode(), args.bytes, sampling, args.seed)
    print(f"step {saved.step}", file=sys.stderr)
    print(terminal_text(args.prompt.encode() + text))
