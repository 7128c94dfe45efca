"""What the README says still runs: its Python examples, its configs, its links."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from fftlm_jax.config.keys_model import OptimConfig
from fftlm_jax.optim import scale_by_given_learning_rate
from fftlm_jax.training import optimizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_examples_run(example, monkeypatch):
    for table in ("OPTIMIZER_LINKS", "OPTIMIZERS"):  # What an example registers is for it alone.
        monkeypatch.setattr(optimizer, table, dict(getattr(optimizer, table)))
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    if "lion" in optimizer.OPTIMIZER_LINKS:
        params = {"head": {"kernel": jnp.ones((2, 3))}}
        tx = optimizer.build_optimizer(OptimConfig(name="lion"), scale_by_given_learning_rate(), 10)
        names["updates"], _ = tx.update(params, tx.init(params), params, learning_rate=0.1)
    assert all(jnp.isfinite(leaf).all() and (leaf != 0).any() for leaf in jax.tree.leaves(names["updates"]))


def test_every_config_has_its_row():
    configs = {path.name for path in (ROOT / "configs").glob("*.py")} - {"__init__.py"}
    assert configs == set(re.findall(r"^\| `(\w+\.py)` \|", README, re.MULTILINE))


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 3
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
