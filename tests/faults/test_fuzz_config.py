"""Any JSON in place of any keys of a config: a config or sentences about it, never anything else."""

import copy
import json

from hypothesis import given
from hypothesis import strategies as st

from fftlm_jax.checkpoints.saved_run import open_config
from fftlm_jax.config.reading import read_config, read_model_config, to_dict
from fftlm_jax.config.schema import Config, ModelConfig
from fftlm_jax.runtime.errors import ConfigError, RunError
from tests.faults.fuzzing import JSON, NUMBERS, fuzz
from tests.tiny import tiny_values

PLAIN = to_dict(read_config(tiny_values()))
PATHS = [(name,) for name in PLAIN] + [(s, key) for s, keys in PLAIN.items() if isinstance(keys, dict) for key in keys]
ROWS = st.lists(st.lists(st.one_of(NUMBERS, st.just("rest"), st.just("mlp"), JSON), min_size=1, max_size=3), max_size=3)
VALUES = st.one_of(JSON, NUMBERS, ROWS)


def with_changes(changes):
    values = copy.deepcopy(PLAIN)
    for path, value in changes:
        target = values
        for name in path[:-1]:
            target = target[name]
        if isinstance(target, dict):
            target[path[-1]] = value
    return values


def require_sentences(error):
    assert error.faults
    for fault in error.faults:
        assert fault.isprintable() and len(fault) < 2000 and fault.endswith((".", "?")), fault


@fuzz
@given(st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=4))
def test_any_value_of_any_key(changes):
    changes = sorted(changes, key=lambda change: -len(change[0]))  # Sections last: their keys would be gone.
    try:
        assert isinstance(read_config(with_changes(changes), with_data=False), Config)
    except ConfigError as error:
        require_sentences(error)


KEYS_OF_RULES = [
    path
    for path in PATHS
    if path[0] in ("curriculum", "lr", "optim", "train", "resume", "raft") and isinstance(PLAIN[path[0]], dict)
]


@fuzz
@given(st.lists(st.tuples(st.sampled_from([p for p in KEYS_OF_RULES if len(p) == 2]), ROWS), min_size=1, max_size=3))
def test_any_rows_reach_the_rules_between_keys(changes):
    values = with_changes([*changes, (("task",), "raft"), (("curriculum", "rule"), "schedule")])
    try:
        assert isinstance(read_config(values, with_data=False), Config)
    except ConfigError as error:
        require_sentences(error)


@fuzz
@given(st.dictionaries(st.sampled_from(list(PLAIN["model"])), VALUES, min_size=1, max_size=4))
def test_any_model_of_an_export(changes):
    try:
        assert isinstance(read_model_config({**PLAIN["model"], **changes}), ModelConfig)
    except ConfigError as error:
        require_sentences(error)


@fuzz
@given(st.text(alphabet=st.characters(blacklist_characters="*"), max_size=8))
def test_any_path_of_a_corpus(path):
    try:
        assert isinstance(read_config(with_changes([(("data", "path"), path)])), Config)
    except ConfigError as error:
        require_sentences(error)


@fuzz
@given(st.one_of(st.binary(max_size=40), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_as_config_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    try:
        open_config(tmp_path)
    except RunError as error:
        assert len(str(error)) < 5000
    else:
        raise AssertionError("that was no config")


def test_deep_and_long_files_are_refused(tmp_path):
    for content, why in (("[" * 100_000, "nested too deeply"), (" " * (1 << 24) + "{}", "longer than 16777216 bytes")):
        (tmp_path / "config.json").write_text(content)
        try:
            open_config(tmp_path)
        except RunError as error:
            assert why in str(error) and error.exit_code == 4
        else:
            raise AssertionError(why)
