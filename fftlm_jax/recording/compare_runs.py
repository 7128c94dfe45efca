"""Draws runs side by side: loss, held-out bpb, learning rate, cutoff, gradient norm and rho over steps.

    fftlm compare runs/a runs/b --out=compare.png
    fftlm compare runs/a logs/lrmul-1-1.52-1.73-1-cd0.55-spectral_lr_0.1-20260206-233406.txt

A run is a run directory, or a text log of the source document's program.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from fftlm_jax.recording.curves import replace_figure, use_log_scale
from fftlm_jax.recording.history import Record, is_number
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime.errors import SaveError, UsageError
from fftlm_jax.runtime.process import CommandParser, path_option, run_command
from fftlm_jax.runtime.untrusted import log_text, printable

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

Series = Mapping[str, list[tuple[float, float]]]  # Panel -> points (step, value).

PANELS = {
    "loss": "training loss (nats)",
    "bpb": "held-out bits per byte",
    "val_loss": "validation loss of a log (nats per token)",
    "lr": "learning rate",
    "cutoff": "cutoff (bins)",
    "grad_norm": "gradient norm",
    "rho": "mean |rho| of all matrices",
}
_LOGARITHMIC = ("grad_norm", "rho")
_SMOOTHED = ("loss", "grad_norm")
_SMOOTHING_WINDOWS = 100
# A validation line of the source's program; what it prints depends on its options, so only these two are required.
_LOG_LINE = re.compile(r"^step:(?P<step>\d+)/\d+ val_loss:(?P<loss>[\d.]+|nan|-?inf)", re.I)
_LOG_NUMBER = re.compile(r"\b(?P<name>lr_mul|spec_attn|spec_mlp):(?P<value>\[[^\]]*\]|[-+\w.]+)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)", re.I)


def read_run(path: Path) -> Series:
    """Points of a run directory or of a text log.

    Raises:
        ValueError: if it is neither.
    """
    if (path / "metrics.jsonl").is_file():
        return series_of_records(read_metrics(path / "metrics.jsonl"))
    if path.is_file():
        series = series_of_log(log_text(path.read_bytes()))
        if series["val_loss"]:
            return series
    raise ValueError(f"{path} is neither a run directory nor a log with lines 'step:S/N val_loss:x ...'")


def series_of_records(records: Sequence[Record]) -> Series:
    """Points of the records of a `metrics.jsonl`, NaN for what is no finite number."""
    train = [r for r in records if r["kind"] == "train"]
    series = {name: _points(train, name) for name in ("loss", "lr", "cutoff", "grad_norm")}
    series["bpb"] = _points([r for r in records if r["kind"] == "eval"], "bpb")
    radial = [r for r in records if r["kind"] == "radial" and "rho" in r]
    series["rho"] = [(_number(r["step"]), _mean_abs(_entries(r["rho"]))) for r in radial]
    return series


def series_of_log(text: str) -> Series:
    """Points of the validation lines of a text log, NaN for what is no finite number.

    Its `lr_mul` is a multiplier, not a learning rate.
    """
    series: dict[str, list[tuple[float, float]]] = {name: [] for name in PANELS}
    for line in text.splitlines():
        found = _LOG_LINE.match(line)
        if not found:
            continue
        step = _number(float(found["step"]))
        series["val_loss"].append((step, _value(found["loss"])))
        numbers = {m["name"]: list(map(float, _NUMBER.findall(m["value"]))) for m in _LOG_NUMBER.finditer(line)}
        if numbers.get("lr_mul"):
            series["lr"].append((step, numbers["lr_mul"][0]))
        rho = [x for name in ("spec_attn", "spec_mlp") for x in numbers.get(name, [])]
        if rho:
            series["rho"].append((step, _mean_abs(rho)))
    return series


def draw(runs: Mapping[str, Series], file: Path) -> None:
    """Draws one panel for everything that any of the runs has."""
    shown = [name for name in PANELS if any(series.get(name) for series in runs.values())]
    rows = -(-len(shown) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(13, 3.2 * rows), squeeze=False)
    for axis, name in zip(axes.flat, shown, strict=False):
        for label, series in runs.items():
            if series.get(name):
                steps, values = np.array(series[name]).T
                width = max(1, len(values) // _SMOOTHING_WINDOWS) if name in _SMOOTHED else 1
                smooth = np.convolve(values, np.ones(width) / width, mode="valid")
                axis.plot(
                    steps[width - 1 :], smooth, ".-" if len(values) < 30 else "-", label=shown_label(label), linewidth=1
                )
        axis.set_ylabel(PANELS[name])
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        if name in _LOGARITHMIC:
            use_log_scale(axis)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}
    legend = figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=min(3, len(handles)), fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # Names of runs may hold dollar signs.
    replace_figure(figure, file, (0, 0, 1, 1 - 0.06 * -(-len(handles) // 3) / rows * 2))


def shown_label(name: str) -> str:
    """A run's name as its legend shows it; Matplotlib hides names that begin with an underscore."""
    return printable(f" {name}" if name.startswith("_") else name)


def _points(records: Sequence[Record], name: str) -> list[tuple[float, float]]:
    return [(_number(r["step"]), _number(r[name])) for r in records if name in r]


def _number(value: Any) -> float:
    """A value of a record, NaN where it is no number that can be drawn: others may have written the file."""
    return float(value) if is_number(value) else math.nan


def _value(text: str) -> float:
    """A number of a log, NaN for digits and points that are none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _entries(rho: Any) -> list[Any]:
    """The entries of all matrices in the `rho` of a record, {matrix: [entry of each layer]}."""
    rows = rho.values() if isinstance(rho, dict) else ()
    return [entry for row in rows if isinstance(row, list) for entry in row]


def _mean_abs(values: Sequence[Any]) -> float:
    found = [abs(x) for x in values if is_number(x)]
    return float(np.mean(found)) if found else math.nan


def finite_part(series: Series) -> tuple[Series, dict[str, int]]:
    """The points that can be drawn, and how many of each panel cannot."""
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    left_out = {name: len(points) - len(finite[name]) for name, points in series.items()}
    return finite, {name: count for name, count in left_out.items() if count}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns an exit code of `fftlm_jax.runtime.errors`."""
    parser = CommandParser("fftlm compare", __doc__)
    parser.add_argument("runs", nargs="+", type=path_option, help="run directories or text logs")
    parser.add_argument("--out", type=path_option, default=Path("compare.png"), help="the picture to write")
    args = parser.parse_args(arguments)
    return run_command(lambda: _compare(args.runs, args.out))


def _compare(paths: Sequence[Path], out: Path) -> None:
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UsageError(f"--out: {out} is no name of a picture; let it end in .png.")
    names = [path.resolve().name for path in paths]
    labels = names if len(set(names)) == len(names) else [str(path) for path in paths]
    try:
        runs = {label: read_run(path) for label, path in zip(labels, paths)}
    except ValueError as error:
        raise UsageError(f"RUN: {error}; name others.") from None
    for label, series in runs.items():
        runs[label], left_out = finite_part(series)
        for name, count in left_out.items():
            print(f"{label}: {count} of {len(series[name])} values of {name} are not finite and not drawn")
    if not any(points for series in runs.values() for points in series.values()):
        raise UsageError(f"RUN: {', '.join(labels)}: nothing to draw is recorded yet; ask again later.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw(runs, out)
    except OSError as error:
        raise SaveError(f"--out: {out} cannot be written ({error.strerror or error}).") from None
    print(out)
