"""Writes a saved run's model into a folder to give away.

    fftlm export runs/quickstart --out=quickstart_model
    fftlm export runs/quickstart --out=quickstart_model --step=last --stablehlo

The folder holds weights (safetensors), a config, a README with an example that runs and, with --stablehlo, the forward
pass as a program; no paths, no host names, and of the training text only what the weights remember. Needs the extra
`export`.
"""

import argparse

import jax

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.export.exported_model import (
    ExportedConfig,
    export_files,
    forward_program,
    require_free,
    required,
    write_folder,
)
from fftlm_jax.export.model_readme import readme
from fftlm_jax.runtime.process import CommandParser, path_option, run_command


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    args = _parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _parser() -> CommandParser:
    parser = CommandParser("fftlm export", __doc__)
    parser.add_run()
    parser.add_argument(
        "--out", required=True, type=path_option, help="folder to write: new, empty, or an export to replace"
    )
    parser.add_argument("--step", default="best", help="best (lowest bpb of the raw weights), last, or a number")
    parser.add_argument("--ema", action="store_true", help="the running average of the weights (optim.ema_decay)")
    parser.add_argument("--stablehlo", action="store_true", help="the forward pass too, as a program of its own")
    return parser


def _run(args: argparse.Namespace) -> None:
    require_free(args.out)
    required("safetensors.numpy")
    saved = saved_run.load(args.workdir, args.step, averaged=args.ema)
    config = ExportedConfig(saved.step, "average" if args.ema else "raw", saved.config.model, saved.low_pass)
    program = forward_program(config) if args.stablehlo else None
    parameters = sum(leaf.size for leaf in jax.tree.leaves(saved.params))
    files = export_files(config, saved.params, readme(config, parameters, args.stablehlo), program)
    write_folder(args.out, files)
    print(f"step {saved.step} is exported to {args.out}:")
    for name, content in files.items():
        print(f"{len(content):>14,} bytes   {name}")
