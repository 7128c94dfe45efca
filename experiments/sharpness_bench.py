"""What `experiments.sharpness` measures of a trained run at a cutoff, and on which text."""

from pathlib import Path
from typing import NamedTuple

from experiments import landscape as around
from experiments.landscape import Landscape
from fftlm_jax.checkpoints.contents import TrainState
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.config.cutoff import cutoff_in_bins
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import Config
from fftlm_jax.data import TrainingWindows
from fftlm_jax.data.corpus import load_run_corpus
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.runtime.errors import CheckpointError, UsageError
from fftlm_jax.training import run_parts
from fftlm_jax.training.optimizer import build_optimizer_of

CONFIG = "configs/tiny.py"
CUTOFFS: dict[str, float | str] = {"1/4": 0.25, "1/2": 0.5, "full": "full"}
LOWEST, HIGHEST = "1/4", "full"

FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # Of the learning rate in force.
TRIAL_STEPS, ORDERS = 30, 3  # Steps at each of those, and in how many orders of the data.
OSCILLATION = 0.1  # Nats: how far the documents' example bounces between its cliffs (3.00 and 3.11).
COSINE_STEPS = 20
_FIXED_WINDOWS, _FIXED_BATCHES = 64, 2  # Of the batches that curvature is measured on: the same for all trials.
_FIXED_SEED, _ORDER_SEED = 10_000, 20_000  # Other orders of the text than any training seed's.


class Measure(NamedTuple):
    """One number of a run at a cutoff. `claim`: the sign of its change with the cutoff as the source has it, or 0."""

    words: str
    is_ratio: bool
    claim: int


# Preconditioned: by what Adam would divide its step by. Right after a raise the new coefficients have next to no second
# moment, hence the same again some steps later. Limits on the learning rate: the one that this eigenvalue sets for full
# batches, and those that training on at a grid of constant rates finds.
MEASURES = {
    "sharpness": Measure("top eigenvalue of the Hessian", True, 1),
    "kernel_share": Measure("... share of its vector in the kernels", False, 0),
    "adam_sharpness": Measure("top eigenvalue, preconditioned (Adam)", True, 1),
    "adam_kernel_share": Measure("... share of its vector in the kernels", False, 0),
    "adam_limit": Measure("... LR limit that it sets", True, -1),
    "adam_sharpness_later": Measure(f"... the eigenvalue {COSINE_STEPS} steps later", True, 1),
    "stable_lr": Measure(f"largest LR not worse after {TRIAL_STEPS} steps", True, -1),
    "bounded_lr": Measure(f"largest LR at most {OSCILLATION} nats worse", True, -1),
    "cosine_batches": Measure("cosine, successive mini-batch gradients", False, -1),
    "cosine_fixed": Measure("cosine, one batch's gradient before and after a step", False, -1),
    "cosine_differences": Measure("cosine, successive changes of that", False, -1),
}


class View(NamedTuple):
    """A run trained at one cutoff and measured at another.

    `values`: by measure, a number for every batch, order of the data or step that it was taken over. `loss_changes`:
    [orders][learning rates], null or inf where training met a non-finite number; empty where it did not go on.
    """

    trained: str
    viewed: str
    seed: int
    values: dict[str, list[float]]
    loss_changes: list[list[float | None]]


# Comparison -> whether weights trained at the first cutoff and viewed at the second belong to it.
COMPARISONS = {
    "own": lambda trained, viewed: trained == viewed,
    "raised": lambda trained, viewed: trained == LOWEST,
    "cut": lambda trained, viewed: trained == HIGHEST,
}


class Bench:
    """The landscapes of all cutoffs, compiled once, and the text that everything is measured on."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.corpus = load_run_corpus(config)
        fixed = self._windows(_FIXED_SEED)
        self.fixed = [fixed.batch(i, 1, _FIXED_WINDOWS)[0] for i in range(_FIXED_BATCHES)]
        self.judge = fixed.batch(1, 1, _FIXED_BATCHES * _FIXED_WINDOWS)[0]  # None of the windows above.
        self.orders = [self._windows(_ORDER_SEED + order) for order in range(ORDERS)]
        self._landscapes: dict[str, Landscape] = {}

    def _windows(self, seed: int) -> TrainingWindows:
        model = self.config.model
        return TrainingWindows(self.corpus.train, model.seq_len, model.chunk, seed)

    def view(self, trained: str, viewed: str, seed: int, state: TrainState) -> View:
        """All measures of a state at a cutoff; those that train on only where nothing was cut off."""
        if viewed not in self._landscapes:
            cutoff = cutoff_in_bins(CUTOFFS[viewed], self.config.model.seq_len)
            self._landscapes[viewed] = Landscape(self.config, low_pass_at(self.config, cutoff))
        at = self._landscapes[viewed]
        values, changes = self._curvature(at, state), []
        if list(CUTOFFS).index(viewed) >= list(CUTOFFS).index(trained):
            found, changes = self._training(at, state)
            values |= found
        return View(trained, viewed, seed, values, changes)

    def _curvature(self, at: Landscape, state: TrainState) -> dict[str, list[float]]:
        plain = [around.top_curvature(at, state.params, batch) for batch in self.fixed]
        adam = [around.adam_curvature(at, state, batch) for batch in self.fixed]
        return {
            "sharpness": [top.value for top in plain],
            "kernel_share": [around.share_of(top.vector, state.params, "convolution") for top in plain],
            "adam_sharpness": [top.value for top in adam],
            "adam_kernel_share": [around.share_of(top.vector, state.params, "convolution") for top in adam],
            "adam_limit": [around.limit_of_adam(top.value, self.config.optim.b1) for top in adam],
        }

    def _training(self, at: Landscape, state: TrainState) -> tuple[dict[str, list[float]], list[list[float]]]:
        rates = learning_rates(self.config)
        changes = [around.loss_changes(at, state, order, self.judge, FACTORS, TRIAL_STEPS) for order in self.orders]
        cosines, later = around.gradient_cosines(at, state, self.orders[0], self.fixed[0], COSINE_STEPS)
        values = {
            "adam_sharpness_later": [around.adam_curvature(at, later, batch).value for batch in self.fixed],
            "stable_lr": [around.largest_stable(rates, change, 0.0) for change in changes],
            "bounded_lr": [around.largest_stable(rates, change, OSCILLATION) for change in changes],
            **{f"cosine_{name}": found for name, found in cosines._asdict().items()},
        }
        return values, changes


def learning_rates(config: Config) -> list[float]:
    """The grid of constant learning rates."""
    return [factor * config.lr.base for factor in FACTORS]


def load_state(workdir: Path) -> tuple[Config, TrainState]:
    """A finished run's config and its newest training state.

    Raises:
        CheckpointError: if none is usable. UsageError: if it is no run of AdamW at one constant learning rate.
    """
    directory = RunDirectory(workdir)
    config = read_config(directory.read_config())
    is_constant = config.lr.schedule == "sawtooth" and all(peak == floor == 1 for _, peak, floor in config.lr.stages)
    if config.optim.name != "adamw" or not is_constant:
        raise UsageError(f"{workdir}: needs optim.name 'adamw' and lr.stages (('rest', 1.0, 1.0),); see {CONFIG}.")
    wanted = run_parts.abstract_state(config, build_optimizer_of(config))
    restored = Checkpoints(directory.checkpoints).restore(wanted)
    if restored is None:
        raise CheckpointError(f"{workdir} holds no checkpoint; train it again.")
    return config, restored.arrays
