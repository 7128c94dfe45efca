"""Which part may import which, and what nobody imports."""

import ast
import functools
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fftlm_jax"

# A part may import parts of a lower level, and itself. The commands `generate` and `export` open saved runs, so their
# parts stand above checkpoints; `evaluate` is the door of a command, `exported` an older name of `export`.
LEVELS = {
    "runtime": 0, "config": 1, "spectral": 2,
    "optim": 3, "curriculum": 3, "data": 3, "parallel": 3, "model": 4,
    "checkpoints": 5, "recording": 5, "generation": 6, "export": 6,
    "evaluation": 7, "doctor": 7, "exported": 7, "training": 8, "raft": 9, "plan": 10, "evaluate": 10, "cli": 11,
}  # fmt: skip
FORBIDDEN = {"tensorflow", "torch", "pickle", "cloudpickle", "dill", "clu", "wandb"}
# What benchmarks compare with; imported late, and only where torch is.
TORCH_PEERS = {ROOT / "experiments" / name for name in ("torch_peers.py", "nanogpt_peer.py")}


@functools.cache
def imports_of(file: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str | None:
    names = module.split(".")
    return names[1] if names[0] == "fftlm_jax" and len(names) > 1 else None


FILES = sorted(PACKAGE.rglob("*.py"))


def test_lower_never_imports_higher():
    assert not [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in FILES
        if file != PACKAGE / "__init__.py"
        for module in imports_of(file)
        if module.startswith(("experiments", "configs", "tests")) or not _may_import(file, part_of(module))
    ]


def _may_import(file: pathlib.Path, there: str | None) -> bool:
    here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return there in (None, here) or LEVELS[there] < LEVELS[here]


def test_every_part_has_a_level():
    parts = {f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in FILES} - {"__init__"}
    assert parts == set(LEVELS)


def test_the_loop_is_imported_by_nobody_below_it():
    importers = {f for f in FILES if any(m.startswith("fftlm_jax.training.loop") for m in imports_of(f))}
    assert importers == {PACKAGE / "training" / "__init__.py", PACKAGE / "cli" / "train.py"}


def test_nothing_forbidden_is_imported():
    files = [*FILES, *ROOT.glob("*.py"), *ROOT.glob("configs/*.py"), *ROOT.glob("experiments/*.py")]
    assert len(files) > 150
    assert not [
        f"{file.relative_to(ROOT)} imports {root}"
        for file in files
        for root in {m.split(".")[0] for m in imports_of(file)}
        if root in FORBIDDEN and not (root == "torch" and file in TORCH_PEERS)
    ]


def test_configdict_stays_at_the_edge():
    users = {
        f.relative_to(PACKAGE).as_posix() for f in FILES if any(m.startswith("ml_collections") for m in imports_of(f))
    }
    assert users == {"cli/train.py"}


def test_importing_everything_loads_neither_tensorflow_nor_torch():
    code = "import sys, fftlm_jax.training, fftlm_jax.generation.terminal as c; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    modules = set(done.stdout.split())
    assert "fftlm_jax.generation.terminal" in modules and not modules & {"tensorflow", "torch", "clu"}


ALONE = """
import importlib.abc, sys

OTHERS = {"flax", "orbax", "ml_collections", "yaml", "scipy", "tqdm", "matplotlib", "tensorboardX"}

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OTHERS:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
import jax.numpy as jnp, optax
import fftlm_jax.optim as optim, fftlm_jax.spectral as spectral
params = {"w": jnp.ones((4, 6)), "b": jnp.zeros(6)}
tx = optim.muon_spectral(0.1, alpha=0.2)
updates, _ = tx.update(params, tx.init(params), params)
optax.apply_updates(params, updates)
spectral.causal_convolve(jnp.ones((1, 8, 2)), jnp.ones((2, 3)))
print(*(name for name in sys.modules if name.startswith("fftlm_jax.")), sep="\\n")
"""


def test_the_mathematics_is_usable_alone():
    """In a child that has none of the other dependencies; of the config, only what a cutoff counts is read."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    others = {name for name in done.stdout.split() if name.split(".")[1] not in ("optim", "spectral")}
    assert others == {
        *("fftlm_jax.config", "fftlm_jax.config.cutoff"),
        *("fftlm_jax.runtime", "fftlm_jax.runtime.untrusted", "fftlm_jax.runtime.errors", "fftlm_jax.runtime.platform"),
    }


def test_files_and_functions_stay_small_enough_to_read():
    """And the rooms are few: whoever adds to them splits, merges or moves first."""
    lines = {file: file.read_text().count("\n") for file in FILES}
    assert [str(file) for file, count in lines.items() if count > 300] == []
    long = [
        f"{file.name}:{node.name}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 80
    ]
    assert long == []
    # 130 when the rooms were built, ten for streams, paths and texts as people have them, ten for plans.
    assert len(FILES) <= 151
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "evaluate.py", "exported.py"}
    assert len(list((PACKAGE / "training").glob("*.py"))) <= 12
