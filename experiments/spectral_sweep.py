"""Does Muon gain from a radial component? The source document's sweep, its future experiments, and controls.

    python -m experiments.spectral_sweep --out=runs/spectral_sweep                       # the source's five values
    python -m experiments.spectral_sweep --out=runs/spectral_sweep --grid=all            # everything below
    python -m experiments.spectral_sweep --out=runs/spectral_sweep --grid=all --report   # table and picture only
    python -m experiments.spectral_sweep --out=runs/other --grid=transfer --config=configs/my.py

Base: configs/spectral_sweep.py. `--list` and `--index=N` are those of experiments.sweep, for job arrays. Run folders
are named as the source's logs are, `lrmul-...-cd...-spectral_lr_A-<stamp>`, with the seed before the stamp; the picture
is `spectral_sweep_<n>runs_<stamp>.png`. The stamp is that of the first launch into the folder.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.outcomes import Outcome
from experiments.plot_spectral_sweep import draw
from experiments.sweep import add_options, conduct, report, require_writable, write_results
from experiments.trials import Trial
from fftlm_jax.runtime.process import CommandParser, path_option

CONFIG = "configs/spectral_sweep.py"
_FROBENIUS = ("optim.spectral_normalize=frobenius",)
_MEAN_LOSS = ("optim.grad_units=1.0",)


def _alpha(value: float) -> str:
    return f"optim.spectral_lr={value}"


# Grid -> {tag: overrides}. A tag stands in names and tables behind `spectral_lr_`.
GRIDS: dict[str, dict[str, tuple[str, ...]]] = {
    # The sweep of the source document, in its units.
    "source": {f"{a:g}": (_alpha(a),) for a in (0.0, 0.01, 0.1, 0.5, 1.0)},
    "fine": {f"{a:g}": (_alpha(a),) for a in (0.05, 0.08, 0.12, 0.15)},
    "transfer": {f"{a:g}": (_alpha(a),) for a in (0.01, 0.05, 0.1, 0.2, 0.5)},
    # Four ways to put a radial part beside a polar factor; "0" of the source grid is the first, Polar(G).
    "modes": {f"{a:g}_orthogonal": (_alpha(a), "optim.spectral_mode=orthogonal") for a in (0.0, 0.5)},
    # The other convention for the units of a gradient, and none at all.
    "units": {
        **{f"{a:g}_mean_loss": (_alpha(a), *_MEAN_LOSS) for a in (0.1, 1.0)},
        **{f"{a:g}_frobenius": (_alpha(a), *_FROBENIUS) for a in (0.1, 1.0)},
    },
    # alpha rho W is a weight decay of its own: what does decay alone do, and alpha with its decay taken back?
    "controls": {
        "0_no_decay": (_alpha(0.0), "optim.weight_decay=0.0"),
        "0.1_decay_restored": (_alpha(0.1), "optim.weight_decay=0.06"),
        "0_brake": (_alpha(0.0), "optim.brake=0.5"),
        "0_adamw": ("optim.name=adamw", "lr.base=3e-3"),
    },
    # "Scaling matters early, rotation late."
    "when": {
        "0.1_early": (_alpha(0.1), "optim.spectral_span=(0.0,0.5)"),
        "0.1_late": (_alpha(0.1), "optim.spectral_span=(0.5,1.0)"),
    },
    # The source's further proposals.
    "future": {
        "0.1_adaptive": (_alpha(0.1), "optim.spectral_adaptive=cosine"),
        "0.1_second_moment": (_alpha(0.1), "optim.spectral_normalize=second_moment"),
        "per_layer": ("optim.spectral_lr=(('mixer',0.05),('mlp',0.15))",),
    },
}
BASELINE = "0"
_MANY_SEEDS = ("0", "0.1")  # Resolving the published 0.0039 takes more seeds than the large effects do.


def arms_of(grid: str) -> dict[str, tuple[str, ...]]:
    """The arms of a grid, or of `all` of them, with the baseline first."""
    grids = [name for name in GRIDS if name != "transfer"] if grid == "all" else [grid]
    arms = {BASELINE: GRIDS["source"][BASELINE]}
    for name in grids:
        arms |= GRIDS[name]
    return arms


def trials_of(grid: str, seeds: int, many_seeds: int, stamp: str) -> list[Trial]:
    """Every arm with its seeds; the seeds that all arms have come first."""
    found = []
    for seed in range(max(seeds, many_seeds)):
        for tag, overrides in arms_of(grid).items():
            if seed < (many_seeds if tag in _MANY_SEEDS else seeds):
                folder = f"lrmul-1-1.52-1.73-1-cd0.55-spectral_lr_{tag}-seed{seed}-{stamp}"
                found.append(Trial(tag, overrides, seed, folder))
    return found


def stamp_of(folder: Path) -> str:
    """The stamp of the first launch into this folder; of many at once, such as a job array's, only one wins."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "stamp.txt"
    with contextlib.suppress(FileExistsError), tempfile.NamedTemporaryFile("w", dir=folder) as new:
        new.write(time.strftime("%Y%m%d-%H%M%S") + "\n")
        new.flush()
        os.link(new.name, file)  # Unlike a file opened for writing, a link is never seen empty.
    return file.read_text().strip()


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 unless every trial is finished."""
    parser = CommandParser("python -m experiments.spectral_sweep", __doc__)
    parser.add_argument("--out", required=True, type=path_option, help="folder of the sweep")
    parser.add_argument("--grid", default="source", choices=[*GRIDS, "all"], help="which arms")
    parser.add_argument("--config", default=CONFIG, help="config file that every arm starts from")
    parser.add_argument("--seeds", type=int, default=3, help="of every arm")
    parser.add_argument("--many_seeds", type=int, default=8, help=f"of the arms {' and '.join(_MANY_SEEDS)}")
    add_options(parser)
    args = parser.parse_args(arguments)
    if args.report and not (args.out / "stamp.txt").exists():
        parser.error(f"--report: {args.out} holds no spectral sweep")
    require_writable(parser, args.out)
    stamp = stamp_of(args.out)
    trials = trials_of(args.grid, args.seeds, args.many_seeds, stamp)
    return conduct(parser, args, args.config, trials, lambda outcomes: write_report(outcomes, args.out, stamp))


def write_report(outcomes: Sequence[Outcome], folder: Path, stamp: str) -> None:
    """REPORT.md, its picture and trials.json."""
    write_results(outcomes, report(outcomes, "loss", BASELINE), folder)
    finished = [o for o in outcomes if o.status == "finished"]
    if finished:
        draw(finished, folder, folder / f"spectral_sweep_{len(finished)}runs_{stamp}.png")


if __name__ == "__main__":
    sys.exit(main())
