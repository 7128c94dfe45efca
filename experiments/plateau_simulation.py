"""How often do the two plateau rules raise too soon, and how late? Simulated on losses that were recorded.

    python main.py --config=configs/tiny.py --workdir=runs/losses_32 --config.train.batch_size=32 \\
        --config.train.epochs=20 --config.curriculum.rule=schedule "--config.curriculum.schedule=((0,0.25),)"
    python -m experiments.plateau_simulation runs/losses_32 --figure=plateau_simulation.png

A run at one cutoff and a constant learning rate gives a trend (a power law fitted to its losses) and residuals. Losses
are simulated as the trend plus residuals drawn in blocks, and every rule is asked at every check. The trend is known,
and with it the true improvement of every window. It only falls; where it lies below the threshold is the plateau:
  false raise  the rule raised while the true improvement was still at or above the threshold;
  delay        steps from the first check at the plateau to the first one there at which the rule would raise, whether
               or not it had raised falsely before.
One raise a path: what comes after it would not be this run any more. `--larger_batch=8` divides the residuals by the
root of 8, as a batch 8 times as large would. Not simulated: learning rates that change, which move the trend itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

from experiments.recorded_losses import Recording, record, residual_words, simulate
from fftlm_jax.curriculum import improvement_bound, relative_improvement
from fftlm_jax.recording.curves import replace_figure
from fftlm_jax.runtime.process import CommandParser, path_option, run_command

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

THRESHOLDS, WINDOWS = (0.002, 0.003, 0.005, 0.01), (30, 50, 100)
TESTS = ("simple", "confidence")
_COLORS = dict(zip(WINDOWS, ("#4477aa", "#ee6677", "#228833"), strict=True))


class Cell(NamedTuple):
    """One rule at one setting. Steps count from the start of the run; `raised` [paths] is inf where nothing happened.

    `plateau` is the first check at which the true improvement lies below the threshold, None if the recording ends
    before. `false_per_check` is taken over all checks before it, also those behind a path's first raise.
    """

    test: str
    window: int
    threshold: float
    plateau: int | None
    raised: np.ndarray
    is_false: np.ndarray
    false_per_check: float
    delay: np.ndarray


def cells_of(recording: Recording, losses: np.ndarray, check_every: int, confidence: float) -> list[Cell]:
    """Every rule at every window and threshold, asked after each `check_every` losses."""
    cells = []
    for window in WINDOWS:
        checks = [n for n in range(check_every, len(recording.trend) + 1, check_every) if n >= window]
        true = np.array([relative_improvement(recording.trend[:n], window) for n in checks])
        recent = [[path[n - window : n].tolist() for n in checks] for path in losses]
        seen = {
            "simple": np.array([[relative_improvement(w, window) for w in path] for path in recent]),
            "confidence": np.array([[improvement_bound(w, window, confidence) for w in path] for path in recent]),
        }
        steps = recording.first + np.array(checks)
        cells += [_cell(test, window, threshold, steps, true, seen[test]) for threshold in THRESHOLDS for test in TESTS]
    return cells


def _cell(test: str, window: int, threshold: float, steps: np.ndarray, true: np.ndarray, seen: np.ndarray) -> Cell:
    fires, is_plateau = seen < threshold, true < threshold
    raised = _first(fires, steps)
    plateau = int(steps[is_plateau][0]) if is_plateau.any() else None
    late = _first(fires & is_plateau, steps) - plateau if plateau is not None else np.full(len(seen), np.nan)
    is_false = np.isfinite(raised) & (raised < (np.inf if plateau is None else plateau))
    before = fires[:, ~is_plateau]
    return Cell(test, window, threshold, plateau, raised, is_false, before.mean() if before.size else 0.0, late)


def _first(fires: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Step of each path's first True, inf where there is none."""
    return np.where(fires.any(axis=1), steps[fires.argmax(axis=1)].astype(float), np.inf)


def table(cells: Sequence[Cell], end: int) -> str:
    """Markdown: both rules beside each other, a row a setting."""
    of = {(c.test, c.window, c.threshold): c for c in cells}
    titles = [f"{test}: {what}" for test in TESTS for what in ("false", "per check", "raised at", "never", "delay")]
    lines = [f"| window | threshold | plateau from | {' | '.join(titles)} |", "|---" * (3 + len(titles)) + "|"]
    for window in WINDOWS:
        for threshold in THRESHOLDS:
            pair = [of[test, window, threshold] for test in TESTS]
            plateau = pair[0].plateau or f"after {end}"
            lines.append(f"| {window} | {threshold:g} | {plateau} | {' | '.join(_words(c, end) for c in pair)} |")
    return "\n".join(lines) + "\n"


def _words(cell: Cell, end: int) -> str:
    delay = float(np.median(cell.delay))
    late = "" if np.isnan(delay) else f"{delay:.0f}" if np.isfinite(delay) else f"> {end - cell.plateau}"
    rates = f"{cell.is_false.mean():.0%} | {cell.false_per_check:.1%}"
    return f"{rates} | {mean_raise(cell, end):.0f} | {np.isinf(cell.raised).mean():.0%} | {late}"


def mean_raise(cell: Cell, end: int) -> float:
    """Mean step of the raise; paths without one count with the end of the recording."""
    return float(np.minimum(cell.raised, end).mean())


# What the documents say: (statement, setting A, setting B), where A should be raised later than B. Settings: (window,
# threshold).
STATEMENTS = (
    ("raised every epoch -> increase the threshold", (50, 0.01), (50, 0.005)),
    ("stuck -> decrease the threshold", (50, 0.005), (50, 0.002)),
    ("raised every epoch -> increase the window", (100, 0.005), (50, 0.005)),
    ("threshold 0.01, window 100 raises too early", (50, 0.005), (100, 0.01)),
    ("threshold 0.002, window 30 raises too late", (30, 0.002), (50, 0.005)),
)


def judged(cells: Sequence[Cell], end: int) -> str:
    """The documents' tuning advice against the mean step of the raise, a line each; two standard errors decide."""
    of = {(c.test, c.window, c.threshold): np.minimum(c.raised, end) for c in cells}
    lines = []
    for test in TESTS:
        for statement, later, sooner in STATEMENTS:
            difference = of[test, *later] - of[test, *sooner]
            mean, error = difference.mean(), difference.std() / len(difference) ** 0.5
            verdict = "as said" if mean > 2 * error else "the other way round" if mean < -2 * error else "no difference"
            lines.append(f'* {test}, "{statement}": {verdict} ({mean:+.0f} steps, standard error {error:.0f})')
    return "\n".join(lines) + "\n"


def draw(found: Sequence[tuple[str, Sequence[Cell], int]], file: Path) -> None:
    """A row for every (name, cells, end): false raises, steps of the raise and delays over the threshold."""
    panels = (
        ("false raises, share of runs", lambda cell, end: cell.is_false.mean()),
        ("step of the raise, mean (never = end)", mean_raise),
        ("median delay behind the plateau, steps", lambda cell, end: np.median(cell.delay)),
    )
    figure, axes = plt.subplots(len(found), 3, figsize=(10.5, 3 * len(found)), squeeze=False)
    for row, (name, cells, end) in zip(axes, found, strict=True):
        for axis, (label, value) in zip(row, panels, strict=True):
            _panel(axis, [(c, value(c, end)) for c in cells])
            axis.set_title(label, fontsize=9)
        for window in WINDOWS:
            begins = {c.threshold: c.plateau for c in cells if c.window == window and c.plateau}
            row[1].plot(begins.keys(), begins.values(), ":", color=_COLORS[window], label="true plateau begins")
        row[0].set_ylim(-0.05, 1.05)
        row[0].set_ylabel(name, fontsize=8)
        row[1].set_ylim(bottom=0)
    axes[0, 2].set_ylim(top=2 * axes[0, 2].get_ylim()[1])
    axes[0, 2].legend(fontsize=7, loc="upper right")
    axes[0, 1].legend(*([item[-1]] for item in axes[0, 1].get_legend_handles_labels()), fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("threshold")
    replace_figure(figure, file)


def _panel(axis: Axes, values: Sequence[tuple[Cell, float]]) -> None:
    """A line for every test and window; what is not finite (never raised, or no plateau) is left out."""
    for window in WINDOWS:
        for test, style in zip(TESTS, ("o-", "s--"), strict=True):
            points = [(c.threshold, v) for c, v in values if (c.test, c.window) == (test, window) and np.isfinite(v)]
            x, y = zip(*points) if points else ((), ())
            axis.plot(x, y, style, ms=4, color=_COLORS[window], label=f"{test}, window {window}")
    axis.set_xscale("log")
    axis.set_xticks(THRESHOLDS, [f"{t:g}" for t in THRESHOLDS])
    axis.minorticks_off()
    axis.grid(alpha=0.25)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.plateau_simulation", __doc__)
    parser.add_argument(
        "runs", nargs="+", type=path_option, help="run directories, each at one cutoff and a constant LR"
    )
    parser.add_argument("--figure", type=path_option, default=Path("plateau_simulation.png"))
    parser.add_argument("--skip", type=int, default=100, help="first steps left out")
    parser.add_argument("--paths", type=int, default=300, help="simulated runs")
    parser.add_argument("--block", type=int, default=25, help="successive residuals drawn together")
    parser.add_argument("--check_every", type=int, default=10, help="steps between checks")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--larger_batch", type=float, help="also simulate every run at this multiple of its batch")
    args = parser.parse_args(arguments)
    for name in ("paths", "block", "check_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: must be at least 1")
    if args.skip < 0 or not 0.5 <= args.confidence < 1 or (args.larger_batch or 1) <= 0:
        parser.error("--skip must not be negative, --confidence lie in [0.5, 1), --larger_batch be above 0")
    return run_command(lambda: _simulate_all(args))


def _simulate_all(args: argparse.Namespace) -> None:
    sizes = [1.0, *([args.larger_batch] if args.larger_batch else [])]
    recordings = [record(run, args.skip, size) for run in args.runs for size in sizes]
    found = []
    for recording in recordings:
        losses = simulate(recording, args.paths, args.block, seed=0)
        cells = cells_of(recording, losses, args.check_every, args.confidence)
        end = recording.first + len(recording.trend)
        print(f"### {recording.name}\n\n{residual_words(recording)}\n\n{table(cells, end)}\n{judged(cells, end)}")
        found.append((recording.name, cells, end))
    draw(found, args.figure)
    print(args.figure)


if __name__ == "__main__":
    sys.exit(main())
