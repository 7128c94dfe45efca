"""What the README says still runs: its Python examples, its configs, its links."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_examples_run(example):
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert all(jnp.isfinite(leaf).all() and (leaf != 0).any() for leaf in jax.tree.leaves(names["updates"]))


def test_every_config_has_its_row():
    configs = {path.name for path in (ROOT / "configs").glob("*.py")} - {"__init__.py"}
    assert configs == set(re.findall(r"^\| `(\w+\.py)` \|", README, re.MULTILINE))


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 3
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
