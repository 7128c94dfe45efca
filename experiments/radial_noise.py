"""Signal and noise of the radial component: does its sign survive a mini-batch?

    python -m experiments.radial_noise runs/spectral --batches=64

For every matrix W of a saved run, the gradients G_i of many mini-batches (the run's own batch size, fixed weights) give
q_i = <G_i, W> / |W|, the length of the part along W. Its signal-to-noise ratio in one mini-batch is |mean q| / sd q.
The source document puts it at about 0.1. For comparison, `rest` is the same for the whole gradient: the length of the
mean gradient over the root mean square distance of G_i from it.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments.landscape import batch_loss
from fftlm_jax.checkpoints import saved_run
from fftlm_jax.checkpoints.saved_run import SavedRun
from fftlm_jax.config.schema import Config
from fftlm_jax.data import TrainingWindows
from fftlm_jax.data.corpus import load_run_corpus
from fftlm_jax.model.language_model import Params
from fftlm_jax.model.parameters import MUON_GROUPS, group_of
from fftlm_jax.optim.leaves import path_string
from fftlm_jax.runtime.process import CommandParser, run_command


def matrices(params: Params) -> dict[str, jax.Array]:
    """The matrices of the blocks by path, [layers, in, out]."""
    named = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return {name: leaf for name, leaf in named.items() if group_of(name) in MUON_GROUPS}


def gradients(saved: SavedRun, batches: int) -> dict[str, np.ndarray]:
    """Gradients of `batches` mini-batches of the training text, by path: [batches, layers, in, out]."""
    config: Config = saved.config
    loss = batch_loss(config, saved.low_pass)
    corpus = load_run_corpus(config)
    windows = TrainingWindows(corpus.train, config.model.seq_len, config.model.chunk, config.seed + 1)

    @jax.jit
    def gradient(windows_BW: jax.Array) -> dict[str, jax.Array]:
        return matrices(jax.grad(loss)(saved.params, windows_BW))

    size = config.train.accum_steps * config.train.batch_size
    found = [jax.device_get(gradient(jnp.asarray(windows.batch(i * size, 1, size)[0]))) for i in range(batches)]
    return {name: np.stack([g[name] for g in found]).astype(np.float64) for name in found[0]}


def signal_to_noise(gradients_NLmn: np.ndarray, weights_Lmn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratios per layer in one mini-batch: of the part along the weight, and of the whole gradient.

    The mean of N gradients keeps 1/N of their noise, which is taken out of the squared signal.
    """
    count = len(gradients_NLmn)
    axes = (-2, -1)
    unit = weights_Lmn / np.linalg.norm(weights_Lmn, axis=axes, keepdims=True)
    q_NL = (gradients_NLmn * unit).sum(axis=axes)
    along = _ratio(q_NL.mean(axis=0) ** 2, q_NL.var(axis=0, ddof=1), count)
    mean = gradients_NLmn.mean(axis=0)
    noise = ((gradients_NLmn - mean) ** 2).sum(axis=axes).sum(axis=0) / (count - 1)
    return along, _ratio((mean**2).sum(axis=axes), noise, count)


def _ratio(squared_mean: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
    return np.sqrt(np.maximum(squared_mean - variance / count, 0) / variance)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.radial_noise", __doc__)
    parser.add_argument("workdir", help="run directory")
    parser.add_argument("--step", default="last", help="best, last or a step number")
    parser.add_argument("--batches", type=int, default=64, help="mini-batches, at least 2")
    args = parser.parse_args(arguments)
    if args.batches < 2:
        parser.error("--batches: at least 2, or there is no noise to measure")
    return run_command(lambda: _print_ratios(args.workdir, args.step, args.batches))


def _print_ratios(workdir: str, step: str, batches: int) -> None:
    saved = saved_run.load(workdir, step)
    found = gradients(saved, batches)
    weights = {name: np.asarray(leaf, np.float64) for name, leaf in matrices(saved.params).items()}
    print(f"step {saved.step}, {batches} mini-batches; signal over noise in one of them, per layer")
    for name, gradient in found.items():
        along, rest = signal_to_noise(gradient, weights[name])
        print(f"{name:28} along W {np.round(along, 3).tolist()}   rest {np.round(rest, 3).tolist()}")


if __name__ == "__main__":
    sys.exit(main())
