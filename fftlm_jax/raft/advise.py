"""`python -m fftlm_jax.raft.advise RUN_DIR`: what the rules say of a fine-tuning run, cycle by cycle.

    python -m fftlm_jax.raft.advise runs/raft
    python -m fftlm_jax.raft.advise runs/raft --json

Reads the journal and changes nothing. All advice is a hypothesis to be tested, one change at a time.
"""

import argparse
import json
import sys

from fftlm_jax.command_line import run_command
from fftlm_jax.raft.advisor import advise_all
from fftlm_jax.raft.finished_run import open_run
from fftlm_jax.raft.setup import knobs_of, schedule_of


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.errors`."""
    parser = argparse.ArgumentParser(prog="python -m fftlm_jax.raft.advise", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="run directory of a fine-tuning run")
    parser.add_argument("--json", action="store_true", help="one JSON object per piece of advice")
    args = parser.parse_args(arguments)
    return run_command(lambda: _advise(args.workdir, args.json))


def _advise(workdir: str, as_json: bool) -> None:
    config, results = open_run(workdir)
    advice = advise_all(results, knobs_of(config, schedule_of(config)))
    if as_json:
        for item in (item for items in advice for item in items):
            print(json.dumps(item._asdict()))
        return
    for result, items in zip(results, advice, strict=True):
        print(f"cycle {result.cycle}: held out {result.held_out.rate:.1%}")
        for item in items:
            print(f"  {item.rule}: {item.text}")
            if item.change:
                print(f"      change: {item.change} (from cycle {item.first_cycle} on)")


if __name__ == "__main__":
    sys.exit(main())
