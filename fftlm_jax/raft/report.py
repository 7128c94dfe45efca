"""Writes the report of a fine-tuning run, as Markdown, and its picture again.

    fftlm raft-report runs/raft

Reads the journal; `report.md` and `cycles.png` are all that changes. A run writes both after every cycle itself. The
report has two tables, the best cycle, the advice, and what the numbers do not show.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from fftlm_jax.raft.advise import Advice, advise_all, open_run
from fftlm_jax.raft.cycle_result import CycleResult, best_of
from fftlm_jax.raft.raft_parts import knobs_of, schedule_of
from fftlm_jax.runtime.errors import SaveError
from fftlm_jax.runtime.process import CommandParser, run_command

REPORT, FIGURE = "report.md", "cycles.png"


def write_report(folder: Path, results: Sequence[CycleResult], advice: Sequence[Sequence[Advice]]) -> None:
    """Writes both files of a run.

    Raises:
        OSError: if they cannot be written.
    """
    # Late: matplotlib takes a second to import, which a refused run should not wait for.
    from fftlm_jax.raft.cycles_figure import draw_cycles

    (folder / REPORT).write_text(markdown(results, advice, folder.name), encoding="utf-8")
    draw_cycles(results, folder / FIGURE, folder.name)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    parser = CommandParser("fftlm raft-report", __doc__)
    parser.add_run()
    args = parser.parse_args(arguments)
    return run_command(lambda: _report(Path(args.workdir).resolve()))


def _report(workdir: Path) -> None:
    config, results = open_run(workdir)
    try:
        write_report(workdir, results, advise_all(results, knobs_of(config, schedule_of(config))))
    except OSError as error:
        raise SaveError(f"{workdir}: the report cannot be written ({error.strerror or error}).") from None
    print(f"see {workdir / REPORT} and {workdir / FIGURE}")


_SURE = 1.96  # Standard errors to either side of a 95 % interval.
_CAVEATS = (
    "This is one run with one seed: other seeds, and so other settings, can differ by more than the intervals, which "
    "count the held-out prompts only. The best cycle was chosen on the prompts that it is scored on, which flatters "
    "it, and verified answers to this task say nothing about other tasks."
)


def markdown(results: Sequence[CycleResult], advices_by_cycle: Sequence[Sequence[Advice]], title: str) -> str:
    """The report.

    Args:
        results: of all cycles so far, cycle 0 first.
        advices_by_cycle: of `advise_all`, as many as results.
        title: its heading.
    """
    best = best_of(results)
    return "\n".join(
        [
            f"# {title}",
            "",
            "## Held-out prompts, after each cycle",
            "",
            *_table([_scores(result) for result in results]),
            "",
            "## Samples and training of each cycle",
            "",
            *(_table([_training(r) for r in results[1:]]) if len(results) > 1 else ["No cycle is finished yet."]),
            "",
            f"Best: cycle {best.cycle} with {interval(best)} of the held-out prompts.",
            "",
            "## Advice",
            "",
            *_advice(results, advices_by_cycle),
            "",
            "## What these numbers do not show",
            "",
            _CAVEATS,
            "",
        ]
    )


def interval(result: CycleResult) -> str:
    """The held-out rate with its 95 % interval, in percent, within 0 and 100."""
    rate, width = result.held_out.rate, _SURE * result.held_out.se
    return f"{100 * rate:.1f} % ({100 * max(0.0, rate - width):.1f} to {100 * min(1.0, rate + width):.1f})"


def _scores(result: CycleResult) -> dict[str, str]:
    held_out = result.held_out
    k = max(held_out.pass_at, key=int, default="")
    return {
        "cycle": str(result.cycle),
        "parent": str(result.parent) if result.cycle else "",
        "held-out rate (95 %)": interval(result),
        "greedy": _percent(held_out.greedy_rate),
        "sampled": _percent(held_out.sampled_rate),
        f"pass@{k}" if k else "pass@k": _percent(held_out.pass_at.get(k)),
        "gold loss": _number(held_out.gold_loss),
        "general bpb": _number(held_out.general_bpb),
    }


def _training(result: CycleResult) -> dict[str, str]:
    samples, train = result.samples, result.train
    losses = train.losses if train else ()
    return {
        "cycle": str(result.cycle),
        "train-prompt rate": _percent(samples.rate if samples else None),
        "kept": f"{samples.kept:,}" if samples else "",
        "coverage": _percent(samples.coverage if samples else None),
        "unique/valid": _number(samples.unique_valid if samples else None, ".2f"),
        "LR": _number(train.lr if train else None, ".2e"),
        "steps": str(train.steps) if train else "0",
        "LR area": _number(train.lr_area if train else None, ".2e"),
        "loss": f"{losses[0]:.4g} -> {losses[-1]:.4g}" if losses else "",
        "clipped": _percent(train.clip_fraction if train else None),
    }


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Rows under their keys; columns that are empty throughout are left out."""
    titles = [t for t in dict.fromkeys(t for row in rows for t in row) if any(row.get(t) for row in rows)]
    lines = [titles, ["---:"] * len(titles), *([row.get(t, "") for t in titles] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _advice(results: Sequence[CycleResult], advices_by_cycle: Sequence[Sequence[Advice]]) -> list[str]:
    lines = []
    for result, advices in zip(results, advices_by_cycle, strict=True):
        for advice in advices:
            change = f" Change: `{advice.change}`, from cycle {advice.first_cycle} on." if advice.change else ""
            lines.append(f"- after cycle {result.cycle}, {advice.rule} (hypothesis): {advice.text}{change}")
    return lines or ["No rule has anything to say."]


def _percent(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None or not math.isfinite(value) else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
