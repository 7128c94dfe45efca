"""The type of products by processor: the rule, what a config says it became, and what a resumed run does with it."""

import dataclasses
import json

import jax
import pytest

from fftlm_jax.config.reading import read_config, refuse_changes, to_dict
from fftlm_jax.config.schema import Config, ModelConfig
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime import faults, matrix_units
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.runtime.platform import tracing_for
from fftlm_jax.training import run
from tests.tiny import hash_of, tiny_values, write_words

AMX = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"})
ZEN4 = frozenset({"avx2", "avx512f", "avx512_bf16"})
SKYLAKE = frozenset({"avx2", "avx512f"})
OLD = frozenset({"avx2"})


@pytest.fixture
def processor(monkeypatch):
    """A function that makes this machine's processor one with these features."""

    def become(features):
        monkeypatch.setattr(matrix_units, "cpu_features", lambda: features)

    return become


@pytest.mark.parametrize(
    "features,units,dtype,fusion,is_wide",
    (
        (AMX, "amx", "bfloat16", "INDIVIDUAL_DOT", True),
        (ZEN4, "avx512_bf16", "bfloat16", "INDIVIDUAL_DOT", True),
        (SKYLAKE, "none", "float32", "DOT", True),
        (OLD, "none", "float32", "DOT", False),
        (frozenset(), "none", "float32", "DOT", False),
    ),
    ids=("AMX", "AVX-512 BF16", "AVX-512", "AVX2", "not told"),
)
def test_the_rule_by_processor(processor, features, units, dtype, fusion, is_wide):
    processor(features)
    assert matrix_units.matrix_units("cpu") == units and matrix_units.automatic_dtype("cpu") == dtype
    flags = " ".join(matrix_units.cpu_flags())
    assert flags.endswith(f"LIBRARY_FUSION_TYPE_{fusion}") and ("vector_width=512" in flags) == is_wide
    for platform in ("gpu", "tpu"):
        assert matrix_units.matrix_units(platform) == platform and matrix_units.automatic_dtype(platform) == "bfloat16"


def test_features_are_read_from_what_linux_says(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16\nbugs\t\t: x\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    monkeypatch.setattr(matrix_units, "_CPU_INFO", file)
    assert matrix_units.cpu_features.__wrapped__() == {"fpu", "avx512f", "amx_bf16"}
    file.write_text("Features\t: asimd bf16\n")
    assert matrix_units.cpu_features.__wrapped__() == frozenset()
    file.unlink()
    assert matrix_units.cpu_features.__wrapped__() == frozenset()


def types_of(config: Config) -> tuple[str, str]:
    return config.model.dtype, config.optim.polar_dtype


@pytest.mark.parametrize(
    "features,platform,overrides,types",
    (
        (ZEN4, None, {}, ("bfloat16", "bfloat16")),
        (OLD, None, {}, ("float32", "float32")),
        (ZEN4, None, {"model__dtype": "float32"}, ("float32", "float32")),
        (OLD, None, {"model__dtype": "bfloat16"}, ("bfloat16", "bfloat16")),
        (ZEN4, None, {"model__conv_method": "fft"}, ("float32", "float32")),
        (ZEN4, None, {"optim__polar_dtype": "float32"}, ("bfloat16", "float32")),
        (OLD, "tpu", {}, ("bfloat16", "bfloat16")),
        (OLD, "gpu", {"model__dtype": "float32"}, ("float32", "bfloat16")),
    ),
)
def test_auto_becomes_a_type_where_a_config_is_read(processor, features, platform, overrides, types):
    processor(features)
    values = tiny_values(**{"model__dtype": "auto", **overrides})
    with tracing_for(platform):
        assert types_of(read_config(values)) == types
    untouched = read_config(values, keep_auto=True)
    assert types_of(untouched) == (values.model.dtype, values.optim.polar_dtype)


def test_processes_whose_processors_may_differ_take_float32(processor, monkeypatch):
    processor(ZEN4)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert types_of(read_config(tiny_values(model__dtype="auto"))) == ("float32", "float32")
    with tracing_for("tpu"):
        assert types_of(read_config(tiny_values(model__dtype="auto"))) == ("bfloat16", "bfloat16")


def test_a_model_made_without_a_config_file_follows_the_same_rule(processor):
    processor(ZEN4)
    assert ModelConfig().dtype == "auto" and ModelConfig().dtype_on("cpu") == "bfloat16"
    assert ModelConfig(conv_method="fft").dtype_on("tpu") == "float32"
    processor(OLD)
    assert ModelConfig().dtype_on("cpu") == "float32" and ModelConfig().dtype_on("gpu") == "bfloat16"


def test_a_run_keeps_the_type_it_began_with_on_another_processor_and_says_so(processor, tmp_path):
    write_words(tmp_path / "corpus.txt")
    values = tiny_values(data__path=str(tmp_path / "corpus.txt"), train__epochs=2, model__dtype="auto")
    processor(ZEN4)
    run(values, tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (config["model"]["dtype"], config["optim"]["polar_dtype"]) == ("bfloat16", "bfloat16")
    assert json.loads((tmp_path / "whole" / "env.json").read_text())["matrix_units"] == "avx512_bf16"

    faults.arm("stop@mid_step:7")
    with pytest.raises(faults.Stopped):
        run(values, tmp_path / "halves")
    processor(OLD)
    run(values, tmp_path / "halves")
    assert json.loads((tmp_path / "halves" / "config.json").read_text()) == config
    assert hash_of(tmp_path / "halves") == hash_of(tmp_path / "whole")
    changed = [
        r for r in read_metrics(tmp_path / "halves" / "metrics.jsonl") if r.get("event") == "environment_changed"
    ]
    assert changed and "matrix_units" in json.dumps(changed)


def test_a_run_of_an_earlier_version_goes_on(processor):
    """Its config.json has no type for the polar factor, and float32 for the model, the default of then."""
    processor(ZEN4)
    saved = to_dict(read_config(tiny_values(model__dtype="float32")))
    del saved["optim"]["polar_dtype"]
    refuse_changes(saved, read_config(tiny_values(model__dtype="float32")))
    other = dataclasses.replace(read_config(tiny_values(model__dtype="float32")), seed=1)
    with pytest.raises(CheckpointError, match="seed: 0 -> 1"):
        refuse_changes(saved, other)
