"""`python -m fftlm_jax.raft.report RUN_DIR`: writes the report and the picture of a fine-tuning run again.

    python -m fftlm_jax.raft.report runs/raft

Reads the journal; `report.md` and `cycles.png` are all that changes. A run writes both after every cycle itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fftlm_jax.command_line import run_command
from fftlm_jax.errors import SaveError
from fftlm_jax.raft.advisor import Advice, advise_all
from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.raft.finished_run import open_run
from fftlm_jax.raft.markdown import markdown
from fftlm_jax.raft.setup import knobs_of, schedule_of

REPORT, FIGURE = "report.md", "cycles.png"


def write_report(folder: Path, results: Sequence[CycleResult], advice: Sequence[Sequence[Advice]]) -> None:
    """Writes both files of a run.

    Raises:
        OSError: if they cannot be written.
    """
    # Late: matplotlib takes a second to import, which a refused run should not wait for.
    from fftlm_jax.raft.figure import draw_cycles

    (folder / REPORT).write_text(markdown(results, advice, folder.name), encoding="utf-8")
    draw_cycles(results, folder / FIGURE, folder.name)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.errors`."""
    parser = argparse.ArgumentParser(prog="python -m fftlm_jax.raft.report", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, help="run directory of a fine-tuning run")
    args = parser.parse_args(arguments)
    return run_command(lambda: _report(args.workdir.resolve()))


def _report(workdir: Path) -> None:
    config, results = open_run(workdir)
    try:
        write_report(workdir, results, advise_all(results, knobs_of(config, schedule_of(config))))
    except OSError as error:
        raise SaveError(f"{workdir}: the report cannot be written ({error.strerror}).") from None
    print(f"see {workdir / REPORT} and {workdir / FIGURE}")


if __name__ == "__main__":
    sys.exit(main())
