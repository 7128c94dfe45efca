"""The validator: every fault at once, one sentence each, naming the field and the fix."""

import importlib
import json
import re

import pytest

from configs import aligned
from fftlm_jax.config.limits import ASKED, FIXED, FREE
from fftlm_jax.config.reading import differences, read_config, to_dict
from fftlm_jax.config.schema import Config, ModelConfig, keys, resume_policy
from fftlm_jax.runtime.errors import ConfigError
from tests.tiny import ROOT, tiny_values

CONFIGS = sorted(p.relative_to(ROOT).with_suffix("").as_posix() for p in (ROOT / "configs").rglob("*.py"))


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.endswith("__init__")])
def test_every_config_is_valid_and_says_how_to_run_it(name):
    module = importlib.import_module(name.replace("/", "."))
    config = module.get_config()
    config.data.path = __file__
    read_config(config)
    assert f"python main.py --config={name}.py" in module.__doc__


@pytest.mark.parametrize(
    "key,value,message",
    (
        ("model__d_model", 0, "config.model.d_model: must be at least 1, not 0"),
        ("model__d_model", -4, "must be at least 1"),
        ("model__conv_heads", 3, "config.model.conv_heads: 3 heads do not divide d_model 16"),
        ("model__kernel_len", 0, "config.model.kernel_len: must be at least 1"),
        ("model__chunk", 5, "config.model.chunk: 5 does not divide seq_len 32"),
        ("model__chunk", 1, "chunks of at least 2 bytes"),
        ("model__dropout", 1.0, r"must lie in \[0, 1\)"),
        ("model__conv_method", "ftt", "did you mean 'fft'"),
        ("model__ffn_mult", 0.001, "leaves no hidden unit"),
        ("model__mixer", "atention", "did you mean 'attention'"),
        ("model__mixer", "attention", "config.curriculum.rule: 'plateau' raises the cutoff of convolution kernels"),
        ("model__memory", "polarr", "did you mean 'polar'"),
        ("model__memory_piece", 1, "must be at least 2"),
        ("model__kernel_basis", "tap", "did you mean 'taps'"),
        ("objective__name", "chunk_hed", "did you mean 'chunk_head'"),
        ("objective__backbone", "frozen", "only objective.name 'chunk_head' can train the head alone"),
        ("optim__ema_decay", 1.0, "must lie in"),
        ("objective__next_byte_weight", -1.0, "must be at least 0"),
        ("curriculum__ladder", (8, 4, "full"), "do not increase"),
        ("curriculum__ladder", (4, 4, "full"), "do not increase"),
        ("curriculum__ladder", (4, 18), "18 bins lie outside 1..17"),
        ("curriculum__ladder", (), "is empty"),
        ("curriculum__ladder", (0.25, 1.5), "no fraction of Nyquist"),
        ("curriculum__ladder", ("fulll",), "is no cutoff"),
        ("curriculum__initial", 99, "config.curriculum.initial: 99 bins lie outside"),
        ("curriculum__window", 5, "no two equal halves"),
        ("curriculum__window", 0, "must be at least 2"),
        ("curriculum__test", "sure", "must be one of simple, confidence"),
        ("curriculum__confidence", 1.0, "must be less than 1"),
        ("curriculum__confidence", 0.05, "must be at least 0.5"),
        ("curriculum__threshold", float("nan"), "config.curriculum.threshold: must be finite"),
        ("curriculum__threshold", 2.0, "relative improvement"),
        ("curriculum__check_every", "epcoh", "'epoch' or a number of steps"),
        ("curriculum__check_every", 0, "'epoch' or a number of steps"),
        ("curriculum__method", "signal", "sees the future"),
        ("lr__base", 0.0, "must be greater than 0"),
        ("lr__base", float("inf"), "must be finite"),
        ("lr__stages", (), "is empty"),
        ("lr__stages", ((9, 1.0, 0.1), ("rest", 1.0, 0.1)), "do not fit train.epochs 5"),
        ("lr__stages", ((3, 1.0, 0.1),), "last 3 epochs in all, but train.epochs is 5"),
        ("lr__stages", ((0, 1.0, 0.1), ("rest", 1.0, 0.1)), "whole number of epochs"),
        ("lr__stages", (("rest", 1.0, 0.1), (1, 1.0, 0.1)), "only the last stage"),
        ("lr__stages", (("rest", 0.1, 1.0),), "0 <= floor <= peak"),
        ("lr__stages", (("rest", 1.0),), "is not .epochs or 'rest', peak, floor"),
        ("lr__factor", "sqr_ratio", "did you mean 'sqrt_ratio'"),
        ("lr__factor", -0.5, "must be greater than 0"),
        ("lr__restart", "teeth", "must be one of tooth, pulse, none"),
        ("optim__b2", 1.0, "must lie in"),
        ("optim__clip", 0.0, "must be greater than 0"),
        ("optim__weight_decay", -0.1, "must be at least 0"),
        ("train__epochs", 0, "must be at least 1"),
        ("train__batch_size", -2, "must be at least 1"),
        ("sample__top_p", 0.0, "must be greater than 0"),
        ("sample__top_k", 257, "must lie in"),
        ("data__held_out", 1.0, "must lie in"),
        ("data__source", "files", "needs a file, a folder or a glob"),
        ("resume__mode", "always", "must be one of auto, never, must"),
        ("seed", -1, "config.seed: must lie in"),
        ("seed", 2**32, "config.seed: must lie in"),
        ("eval__max_bytes", 35, "35 is less than a window of 36 bytes"),
        ("checkpoint__keep_last", 1, "must be at least 2"),
        ("data__path", "no/such/file", "no/such/file does not exist"),
        ("resume__allow", ("train.epoch",), "'train.epoch' is no key or section"),
        ("resume__allow", ("seed.x",), "'seed.x' is no key or section"),
    ),
)
def test_faults(key, value, message):
    with pytest.raises(ConfigError, match=message):
        read_config(tiny_values(**{key: value}))


def test_the_confidence_rule_needs_losses_to_tell_noise_by():
    few = {"curriculum__test": "confidence", "curriculum__window": 2}
    with pytest.raises(ConfigError, match="config.curriculum.window: 2 losses show no noise"):
        read_config(tiny_values(**few))
    assert read_config(tiny_values(**few, curriculum__rule="none")).curriculum.window == 2
    assert read_config(tiny_values(curriculum__window=2)).curriculum.test == "simple"


@pytest.mark.parametrize("allow", (("train.epochs", "lr", "seed"), ()))
def test_keys_and_sections_may_be_allowed(allow):
    assert read_config(tiny_values(resume__allow=allow)).resume.allow == allow


@pytest.mark.parametrize(
    "message,overrides",
    (
        ("5 heads do not divide d_model 16 into even widths", {"model__attention_heads": 5}),
        ("16 heads do not divide d_model 16 into even widths", {"model__attention_heads": 16}),
        ("config.model.projections: attention is made of projections", {"model__projections": False}),
        ("config.model.memory_piece: 33 exceeds the window", {"model__memory": "polar", "model__memory_piece": 33}),
        ("a frozen backbone must come from a trained run", {"objective__name": "chunk_head"}),
        ("not regularised by dropout", {"objective__name": "chunk_head", "model__dropout": 0.1}),
    ),
)
def test_faults_of_mixers_memories_and_heads(message, overrides):
    base = {"model__mixer": "attention", "curriculum__rule": "none", "objective__backbone": "frozen"}
    if "objective__name" not in overrides:
        base["objective__backbone"] = "trained"
    with pytest.raises(ConfigError, match=message):
        read_config(tiny_values(**{**base, **overrides}))


@pytest.mark.parametrize(
    "message,overrides",
    (
        ("'cooldown' takes no events", {"lr__schedule": "cooldown"}),
        ("config.lr.multipliers: .* must be one or more numbers above 0", {"lr__multipliers": (1.0, -1.0)}),
        ("config.lr.multipliers", {"lr__multipliers": ()}),
        ("config.optim.spectral_lr: .* is not .group, number.", {"optim__spectral_lr": (("mpl", 0.1),)}),
        ("config.optim.spectral_lr", {"optim__spectral_lr": (("mlp", "0.1"),)}),
        ("groups of this model, each once, are mixer and mlp", {"optim__spectral_lr": (("attention", 0.1),)}),
        ("is not .group, number", {"optim__spectral_lr": (("mlp", 0.1), ("mlp", 0.2))}),
        ("is not .group, number", {"optim__spectral_lr": (("mlp", float("inf")),)}),
        ("spectral_lr: is empty", {"optim__spectral_lr": ()}),
        ("spectral_lr: belongs to muon and would do nothing", {"optim__spectral_lr": 0.1, "optim__name": "adamw"}),
        ("brake: belongs to muon", {"optim__brake": 0.5, "optim__name": "adamw"}),
        ("neuron_beta2: belongs to muon", {"optim__neuron_beta2": 0.5, "optim__name": "adamw"}),
        (
            "leaves muon no matrix",
            {"objective__name": "chunk_head", "objective__backbone": "frozen", "init__checkpoint": "x"},
        ),
        ("config.optim.spectral_lr: must be float or tuple", {"optim__spectral_lr": "0.1x"}),
        ("config.optim.spectral_span", {"optim__spectral_span": (0.5, 0.5)}),
        ("config.optim.spectral_span", {"optim__spectral_span": (0.5,)}),
        ("did you mean 'interpolate'", {"optim__spectral_mode": "interpolat"}),
        ("must be one of adamw, muon", {"optim__name": "sgd"}),
    ),
)
def test_faults_of_learning_rates_and_optimizers(message, overrides):
    with pytest.raises(ConfigError, match=message):
        read_config(tiny_values(**{"optim__name": "muon", **overrides}))


def test_what_only_convolutions_need_is_not_asked_of_attention():
    attention = {"model__mixer": "attention", "curriculum__rule": "none"}
    unused = {"model__conv_heads": 3, "model__conv_method": "fft", "model__dtype": "bfloat16"}
    assert read_config(tiny_values(**unused, **attention)).model.conv_heads == 3
    with pytest.raises(ConfigError) as error:
        read_config(tiny_values(**unused))
    assert len(error.value.faults) == 2


def test_a_ladder_that_nobody_climbs_need_not_fit_the_window():
    far = {"curriculum__ladder": (128, 256, "full")}
    assert read_config(tiny_values(curriculum__rule="none", **far)).curriculum.rule == "none"
    for rule in ("plateau", "schedule"):
        with pytest.raises(ConfigError, match="128 bins lie outside"):
            read_config(tiny_values(curriculum__rule=rule, **far))


def test_the_cooldown_has_no_use_for_the_teeth():
    """Stages that do not fit are no fault where nobody reads them."""
    config = read_config(tiny_values(lr__schedule="cooldown", lr__restart="none", lr__stages=((9, 1.0, 0.1),)))
    assert config.lr.schedule == "cooldown"


def test_bfloat16_has_no_fft():
    with pytest.raises(ConfigError, match="no FFT in bfloat16"):
        read_config(tiny_values(model__dtype="bfloat16", model__conv_method="fft"))


def test_the_signal_method_is_legal_where_it_flatters_nothing():
    harmless = {"objective__positions": "last", "objective__next_byte_weight": 0.0}
    assert read_config(tiny_values(curriculum__method="signal", **harmless)).curriculum.method == "signal"
    for key in harmless:
        fewer = {name: value for name, value in harmless.items() if name != key}
        with pytest.raises(ConfigError, match="sees the future"):
            read_config(tiny_values(curriculum__method="signal", **fewer))


def test_all_faults_come_at_once():
    with pytest.raises(ConfigError) as error:
        read_config(tiny_values(model__d_model=-1, lr__base=0.0, train__epochs=0))
    assert len(error.value.faults) == 3
    with pytest.raises(ConfigError) as error:
        read_config(tiny_values(model__conv_heads=3, model__chunk=5, curriculum__window=5))
    assert len(error.value.faults) == 3
    with pytest.raises(ConfigError) as error:
        read_config(tiny_values(lr__base=0.0, model__conv_heads=3, data__path="no/such/file"))
    assert len(error.value.faults) == 3, "faulty sections do not silence the rules about the others"


def test_an_empty_schedule_is_refused_where_it_is_used():
    with pytest.raises(ConfigError, match="config.curriculum.schedule: is empty"):
        read_config(tiny_values(curriculum__rule="schedule", curriculum__schedule=()))


def plain() -> dict:
    return to_dict(read_config(tiny_values()))


def test_unknown_and_missing_keys_are_named():
    values = plain()
    values["model"]["d_modle"] = values["model"].pop("d_model")
    with pytest.raises(ConfigError) as error:
        read_config(values)
    assert "config.model.d_modle: there is no such key (did you mean 'd_model'?)" in str(error.value)
    assert "config.model: lacks d_model" in str(error.value)


def test_a_section_replaced_by_a_dict_or_a_value_is_refused():
    values = plain()
    values["model"] = {"d_model": 1}
    with pytest.raises(ConfigError, match="config.model: lacks .* never a whole section"):
        read_config(values)
    values["model"] = 3
    with pytest.raises(ConfigError, match="config.model: must be a section of keys, not 3"):
        read_config(values)


@pytest.mark.parametrize(
    "section,key,value",
    (
        ("model", "d_model", 16.0),
        ("model", "d_model", True),
        ("model", "projections", 1),
        ("lr", "base", "1e-3"),
        ("train", "epochs", None),
        ("curriculum", "ladder", "full"),
    ),
)
def test_wrong_types_are_refused(section, key, value):
    values = plain()
    values[section][key] = value
    with pytest.raises(ConfigError, match=f"config.{section}.{key}: must be .*, not {value!r}"):
        read_config(values)


def test_an_int_is_a_float_and_a_list_a_tuple():
    values = plain()
    values["lr"]["base"] = 1
    values["curriculum"]["ladder"] = [4, "full"]
    config = read_config(values)
    assert config.lr.base == 1.0 and config.curriculum.ladder == (4, "full")


def test_json_and_back_is_the_same_config():
    config = read_config(aligned.get_config())
    assert read_config(json.loads(json.dumps(to_dict(config)))) == config


def test_differences_are_dotted_and_blind_to_tuples_as_lists():
    old = plain()
    new = json.loads(json.dumps(old))
    assert differences(old, new) == {}
    new["model"]["d_model"], new["curriculum"]["ladder"] = 64, [4, "full"]
    assert differences(old, new) == {"curriculum.ladder": ((4, 8, "full"), [4, "full"]), "model.d_model": (16, 64)}


def comments_of_aligned() -> dict[str, str]:
    """Dotted key -> its comment in configs/aligned.py, behind the value or above it."""
    comments, above, section = {}, [], ""
    for line in (ROOT / "configs" / "aligned.py").read_text().splitlines():
        if opened := re.match(r"    c\.(\w+) = (?:\w+ = ConfigDict|_raft)", line) or re.match(
            r"    (raft) = Conf", line
        ):
            section = f"{opened[1]}."
        elif line.strip().startswith("#"):
            above.append(line.strip()[2:])
            continue
        elif key := re.match(r"    (\w+)\.(\w+) = ", line):
            behind = line.partition("  # ")[2]
            comments[("" if key[1] == "c" else section) + key[2]] = behind or " ".join(above)
        above = []
    return comments


def test_the_list_for_people_has_every_key_with_the_schemas_default_and_sentence():
    assert read_config(aligned.get_config(), keep_auto=True) == Config()
    comments, fields = comments_of_aligned(), keys()
    assert comments.keys() == fields.keys()
    sentences = {name: field.metadata["sentence"] for name, field in fields.items()}
    assert [name for name, sentence in sentences.items() if not comments[name].startswith(sentence)] == []
    assert [name for name, sentence in sentences.items() if not sentence.endswith(".")] == []


def test_a_section_has_its_defaults_in_a_notebook():
    assert ModelConfig().d_model == aligned.get_config().model.d_model
    assert hash(ModelConfig(mixer="attention")) != hash(ModelConfig()) == hash(Config().model)


def test_what_a_resumed_run_may_do_with_a_key_is_said_in_the_schema():
    assert {resume_policy(name) for name in keys()} == {FREE, ASKED, FIXED}
    for name, policy in (
        *(("model.d_model", FIXED), ("model.dropout", ASKED), ("model.remat", FREE), ("sample.top_p", FREE)),
        *(("lr.base", ASKED), ("lr.schedule", FIXED), ("task", FIXED), ("seed", ASKED), ("compile_cache", FREE)),
        *(
            ("model.of_another_version", FIXED),
            ("nothing.of_the_sort", ASKED),
            ("eval.of_another_version", ASKED),
            ("raft.lora_rank", FIXED),
        ),
    ):
        assert resume_policy(name) == policy, name
