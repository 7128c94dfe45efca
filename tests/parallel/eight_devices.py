"""What `test_many_devices` asks of eight simulated devices, in one process that prints JSON: compiling is what costs.

Run by itself: XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.parallel.eight_devices
"""

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.curriculum import Answer
from fftlm_jax.curriculum.controller import build_controller
from fftlm_jax.data import TrainingWindows
from fftlm_jax.evaluation.held_out_bpb import HeldOut
from fftlm_jax.model import build
from fftlm_jax.model.language_model import low_pass_at
from fftlm_jax.parallel import distribute
from fftlm_jax.plan.estimate import place_of
from fftlm_jax.plan.program_text import collectives_of
from fftlm_jax.training import run_parts
from fftlm_jax.training.batches import windows_sharding
from fftlm_jax.training.compiler import StepVariant
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.step import events
from tests.tiny import tiny

STEPS = 10
FSDP = {"mesh__data": 2, "mesh__fsdp": 4, "mesh__fsdp_min_size": 500}
CASES = {
    "one": {"mesh__data": 1, "model__conv_method": "fft"},
    "fft": {"model__conv_method": "fft"},
    "toeplitz": {"model__conv_method": "toeplitz", "model__memory": "polar", "model__memory_piece": 4},
    "fsdp": {"model__conv_method": "fft", **FSDP},
    "fsdp_bfloat16": {"model__conv_method": "toeplitz", "model__dtype": "bfloat16", **FSDP},
    # By FFT, so that all products outside of loops are those of the polar iterations.
    "muon": {"optim__name": "muon", "model__conv_method": "fft"},
    "muon_fsdp": {"optim__name": "muon", "model__conv_method": "fft", **FSDP},
    "memory_fsdp": {"model__memory": "aligned", "model__memory_piece": 2, **FSDP},
}


class Run:
    """A tiny run without its loop: its first steps, and what the compiler made of them."""

    def __init__(self, **overrides):
        # 24 wide, so that no activation has the shape of a parameter.
        small = {"model__n_layers": 2, "optim__polar_steps": 2}
        self.config = tiny(train__batch_size=8, model__d_model=24, model__ffn_mult=1.5, **small, **overrides)
        self.mesh = run_parts.build_mesh(self.config)
        self.tx = build_optimizer_of(self.config, self.mesh)
        self.graph, self.abstract_params = build(self.config.model)
        self.controller = build_controller(self.config)
        model = self.config.model
        self.data = np.random.default_rng(0).integers(97, 123, 4000).astype(np.uint8)
        self.windows = TrainingWindows(self.data, model.seq_len, model.chunk, self.config.seed)

    def train(self):
        self.state, _ = run_parts.first_state(self.config, self.tx, self.mesh)
        accum, size = self.config.train.accum_steps, self.config.train.batch_size
        with run_parts.build_compiler(self.config, self.graph, self.tx, self.mesh) as compiler:
            variant = StepVariant(low_pass_at(self.config, self.controller.cutoff), accum)
            compiled = compiler.get(variant).run
        self.text, self.memory = compiled.as_text(), compiled.memory_analysis()
        self.losses, order = [], hashlib.sha256()
        for step in range(STEPS):
            windows = self.windows.batch(step * accum * size, accum, size)
            if self.mesh is not None:
                windows = distribute(windows, windows_sharding(self.mesh))
            order.update(np.asarray(windows).tobytes())
            self.state, metrics = compiled(self.state, windows, *events(Answer()))
            self.losses.append(float(metrics.loss))
        self.order = order.hexdigest()
        return self

    def facts(self):
        collectives = collectives_of(self.text, distinct_channels=False)
        return {
            "losses": self.losses,
            "order": self.order,
            "bpb": HeldOut(self.config, self.graph, self.data, self.mesh).scores(self.state, 17)["bpb"],
            "collectives": [{**c._asdict(), "place": place_of(c), "moved": c.moved} for c in collectives],
            "micro_batches": self.config.train.accum_steps,
            "ffts": re.findall(r"= (\S+?)(?:\{\S*)? fft\(", self.text),
            "polar": polar_shapes(self.text),
            "aliased": len(re.findall(r"\{[\d, ]*\}: \(\d+, \{\}, (?:may|must)-alias\)", self.text)),
            "leaves": len(jax.tree.leaves(self.state)),
            "f64": "f64[" in self.text,
            "parameters": [list(p.shape) for p in jax.tree.leaves(self.abstract_params)],
            "state_bytes": sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(self.state)),
            "where": {name: str(where) for name, where in self.where().items()},
        }

    def where(self):
        leaves = jax.tree_util.tree_leaves_with_path(self.state)
        return {jax.tree_util.keystr(p, simple=True, separator="/"): getattr(x.sharding, "spec", "") for p, x in leaves}


def polar_shapes(text: str) -> list[str]:
    """Results of the matrix products outside of the loop over micro-batches: those of the polar iterations."""
    lines = [line for line in text.splitlines() if " dot(" in line and "/while/" not in line]
    return [re.search(r"= (\w+\[[\d,]*\])", line).group(1) for line in lines]


def moved_between_devices(run: Run) -> dict[str, bool]:
    """The state of one device, saved and restored on 8, saved there and restored on 2, and back on one."""
    arrays, same = run.state, {}
    expected = jax.device_get(run.state)
    for data, fsdp in ((2, 4), (1, 2), (1, 1)):
        target = Run(model__conv_method="fft", mesh__data=data, mesh__fsdp=fsdp, mesh__fsdp_min_size=500)
        with tempfile.TemporaryDirectory() as folder:
            Checkpoints(Path(folder) / "checkpoints").save(1, arrays, {})
            abstract = run_parts.abstract_state(target.config, target.tx, target.mesh)
            arrays = Checkpoints(Path(folder) / "checkpoints").restore(abstract).arrays
        placed = all(
            jax.tree.leaves(jax.tree.map(lambda x, a: a.sharding is None or x.sharding == a.sharding, arrays, abstract))
        )
        equal = jax.tree.leaves(jax.tree.map(np.array_equal, expected, jax.device_get(arrays)))
        same[f"{data} x {fsdp}"] = placed and all(equal)
    return same


def main() -> None:
    runs = {name: Run(**overrides).train() for name, overrides in CASES.items()}
    found = {name: run.facts() for name, run in runs.items()}
    found["moved"] = moved_between_devices(runs["one"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
