"""The README's table of faults: every row is there, and every test that it names exists."""

import ast
import re

from tests.tiny import ROOT

TABLE = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_every_row_is_there():
    assert [int(number) for number, _ in TABLE] == list(range(1, 52))
    assert all("::test_" in row for _, row in TABLE)


def test_every_test_that_is_named_exists():
    named = re.findall(r"(†?)`([\w/]+\.py)::(\w+)`", " ".join(row for _, row in TABLE))
    assert len(named) > 30
    for mark, file, name in named:
        source = (ROOT / "tests" / file).read_text()
        tests = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
        assert name in tests, f"{file}::{name}"
        decorators = " ".join(map(ast.unparse, tests[name].decorator_list))
        is_long = "torture" in decorators or "pytestmark = [pytest.mark.torture" in source
        assert bool(mark) == is_long, f"{file}::{name}"
