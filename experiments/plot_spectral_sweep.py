"""The picture of a spectral sweep: held-out loss, and the radial ratio rho of the mixer's and the MLP's gradients.

    python -m experiments.plot_spectral_sweep runs/spectral_sweep

Lines are means over seeds, bands their range. Only arms that are plain values of alpha are drawn.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from experiments.outcomes import Outcome
from experiments.trials import Trial
from fftlm_jax.recording.curves import replace_figure
from fftlm_jax.recording.history import Record
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.process import CommandParser, path_option

matplotlib.use("Agg")
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def draw(outcomes: Sequence[Outcome], folder: Path, file: Path) -> None:
    """Draws the finished trials of `folder` into `file`."""
    runs: dict[float, list[list[Record]]] = {}
    for outcome in outcomes:
        try:
            alpha = float(outcome.trial.arm)
        except ValueError:
            continue
        runs.setdefault(alpha, []).append(read_metrics(folder / outcome.trial.name / "metrics.jsonl"))
    figure, axes = plt.subplots(3, 1, figsize=(10, 12), sharex=True)
    for i, alpha in enumerate(sorted(runs)):
        color = colormaps["viridis"](i / max(len(runs) - 1, 1))
        losses = [[(r["step"], r["loss"]) for r in run if r["kind"] == "eval"] for run in runs[alpha]]
        final = np.mean([loss[-1][1] for loss in losses])
        _line(axes[0], losses, color, f"{alpha:g}: final {final:.4f}, {len(losses)} seeds")
        for axis, group in zip(axes[1:], ("mixer", "mlp"), strict=True):
            _line(axis, [_abs_rho(run, group) for run in runs[alpha]], color, f"{alpha:g}")
    axes[0].set_ylabel("held-out loss (nats per byte)")
    axes[0].legend(title="spectral_lr")
    for axis, group in zip(axes[1:], ("mixer", "MLP"), strict=True):
        axis.set_yscale("log")
        axis.set_ylabel(f"mean |rho| of the {group}'s matrices")
    axes[2].set_xlabel("step")
    for axis in axes:
        axis.grid(alpha=0.25)
    replace_figure(figure, file)


def _abs_rho(run: Sequence[Record], group: str) -> list[tuple[int, float]]:
    found = [(r["step"], r["groups"].get(group, {}).get("abs_rho")) for r in run if r["kind"] == "radial"]
    return [(step, value) for step, value in found if value is not None]


def _line(axis: Axes, runs: Sequence[Sequence[tuple[int, float]]], color: object, label: str) -> None:
    """Mean over runs and the range between them, at the steps that all of them have."""
    runs = [dict(run) for run in runs if run]
    if not runs:
        return
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = np.array([[run[step] for step in steps] for run in runs])
    axis.plot(steps, values.mean(axis=0), color=color, label=label)
    axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.plot_spectral_sweep", __doc__)
    parser.add_argument("folder", type=path_option, help="of experiments.spectral_sweep")
    folder = parser.parse_args(arguments).folder
    if not all((folder / name).is_file() for name in ("trials.json", "stamp.txt")):
        parser.error(f"{folder} holds no spectral sweep")
    stamp = (folder / "stamp.txt").read_text().strip()
    outcomes = [
        Outcome(Trial(t["arm"], tuple(t["overrides"]), t["seed"], t["folder"]), t["status"], {})
        for t in json.loads((folder / "trials.json").read_text())
        if t["status"] == "finished"
    ]
    file = folder / f"spectral_sweep_{len(outcomes)}runs_{stamp}.png"
    draw(outcomes, folder, file)
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
