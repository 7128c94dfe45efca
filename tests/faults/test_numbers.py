"""Numbers, logs and settings as others write them: vanishing and huge, NaN, commas and colours, quotes, keys twice."""

import json
import math
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from experiments.trials import parse_arm, parse_grid, parse_seeds, trials_of
from fftlm_jax.config.reading import read_config
from fftlm_jax.config.schema import keys
from fftlm_jax.doctor.evidence import HEALTHY, WARNING
from fftlm_jax.doctor.examine import examine
from fftlm_jax.doctor.text_log import read_text_log
from fftlm_jax.generation.sampling import SamplingConfig, limit_runs, log_probabilities, penalise_repetition, remember
from fftlm_jax.generation.text import argument_bytes
from fftlm_jax.optim import Stage, sawtooth_lr, scale_by_sawtooth, stages_in_steps
from fftlm_jax.raft.cycle_lr import CycleLR
from fftlm_jax.raft.lr_yaml import from_yaml
from fftlm_jax.recording import compare_runs
from fftlm_jax.runtime.errors import ConfigError, UsageError
from fftlm_jax.runtime.untrusted import shown_name
from tests.faults.fuzzing import JSON, fuzz
from tests.raft.raft_run import raft_values
from tests.tiny import tiny_values

powers = lambda least, most: st.floats(least, most).map(lambda exponent: 10.0**exponent)
few = settings(fuzz, max_examples=50)

RULES = st.builds(
    SamplingConfig,
    temperature=st.one_of(powers(-323, 3), st.sampled_from((5e-324, 9.9e-7, 1e-6, 1.0, 1e3))),
    top_k=st.sampled_from((0, 1, 5)),
    top_p=st.one_of(powers(-323, 0), st.sampled_from((5e-324, 0.5, 1.0))),
    min_p=st.one_of(st.just(0.0), powers(-323, 0), st.just(1.0)),
    repetition_penalty=st.one_of(powers(-300, 300), st.sampled_from((1e-300, 1.0, 1e300))),
    longest_run=st.sampled_from((0, 1, 2)),
    banned=st.sampled_from((b"", b"abc")),
)
PAST = st.binary(max_size=6).map(lambda text: b"ab" + text)


@st.composite
def logits(draw):
    """Logits of any size; some of them are exactly 0, as all are of a head that was never trained."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits_V = draw(powers(-30, 4)) * rng.normal(size=256)
    return np.where(rng.random(256) < draw(st.sampled_from((0.0, 0.5, 1.0))), 0.0, logits_V).astype(np.float32)


@fuzz
@given(logits(), PAST, RULES)
@example(np.zeros(256, np.float32), b"ab", SamplingConfig(repetition_penalty=1e300))
@example(np.linspace(-9, 9, 256, dtype=np.float32), b"ab", SamplingConfig(repetition_penalty=2.0, banned=b"abc"))
@example(np.full(256, 1e4, np.float32), b"ab", SamplingConfig(1e-6, repetition_penalty=1e-300))
@example(np.linspace(-1e4, 1e4, 256, dtype=np.float32), b"\xff", SamplingConfig(5e-324, 0, 5e-324, 1.0, 1e-300))
def test_sampling_rules_never_leave_a_distribution_that_is_none(logits_V, past, rules):
    found = np.asarray(log_probabilities(jnp.asarray(logits_V), remember(past, rules.memory), rules), np.float64)
    assert not np.isnan(found).any() and np.exp(found).sum() == pytest.approx(1, abs=1e-4)
    assert (found[~rules.allowed] == -np.inf).all()


@few
@given(logits(), PAST, RULES, powers(-323, -6.001))
def test_at_a_vanishing_temperature_the_likeliest_byte_is_certain(logits_V, past, rules, temperature):
    cold = SamplingConfig(**{**vars(rules), "temperature": temperature})
    recent_R = jnp.asarray(remember(past, cold.memory))
    found = np.asarray(log_probabilities(jnp.asarray(logits_V), recent_R, cold))
    allowed_V = limit_runs(jnp.where(cold.allowed, logits_V, -jnp.inf), recent_R, cold.longest_run)
    likeliest = int(jnp.argmax(penalise_repetition(allowed_V, recent_R, cold.repetition_penalty)))
    assert found[likeliest] == 0 and (np.delete(found, likeliest) == -np.inf).all()
    if rules.repetition_penalty == 1 and not rules.longest_run and not rules.banned:
        assert likeliest == np.argmax(logits_V)


def stages_of(lengths, steps_per_epoch, epochs, written):
    """Stages of so many steps, written in epochs; after them the rest, if anything is left."""
    rows = [(written(length), 1.0 / n, 0.01 / n) for n, length in enumerate(lengths, start=1)]
    left = epochs * steps_per_epoch - sum(lengths)
    if left:
        rows, lengths = [*rows, ("rest", 0.5, 0.25)], [*lengths, left]
    ends = np.cumsum(lengths).tolist()
    found = stages_in_steps(rows, steps_per_epoch, epochs)
    assert list(found) == [Stage(a, b, *row[1:]) for a, b, row in zip([0, *ends], ends, rows)]
    assert all(type(stage.start) is type(stage.end) is int for stage in found)


@fuzz
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 1000), st.integers(0, 9))
def test_stages_of_whole_epochs_follow_each_other_and_last_as_long_as_they_say(lengths, steps_per_epoch, left):
    steps = [length * steps_per_epoch for length in lengths]
    stages_of(steps, steps_per_epoch, sum(lengths) + left, lambda length: length // steps_per_epoch)


@fuzz
@given(st.lists(st.integers(1, 500), min_size=1, max_size=5), st.integers(1, 1000), st.integers(0, 9))
@example([7], 100, 1)
@example([29, 57], 100, 1)
def test_so_do_stages_of_parts_of_epochs(steps, steps_per_epoch, left):
    """0.07 of an epoch of 100 steps are 7 steps."""
    epochs = -(-sum(steps) // steps_per_epoch) + left
    stages_of(steps, steps_per_epoch, epochs, lambda length: length / steps_per_epoch)


@pytest.mark.parametrize(
    "what,rows",
    (
        ("none", ()),
        ("part of a step", ((0.25, 1.0, 0.1), ("rest", 1.0, 0.1))),
        ("part of a step later", ((1, 1.0, 0.1), (1.01, 1.0, 0.1))),
        ("no length", ((0, 1.0, 0.1), ("rest", 1.0, 0.1))),
        ("a negative length", ((2, 1.0, 0.1), (-1, 1.0, 0.1), ("rest", 1.0, 0.1))),
        ("longer than the run", ((2, 1.0, 0.1), (4, 1.0, 0.1))),
        ("nothing left for the rest", ((5, 1.0, 0.1), ("rest", 1.0, 0.1))),
        ("the rest first", (("rest", 1.0, 0.1), (2, 1.0, 0.1))),
        ("the rest twice", (("rest", 1.0, 0.1), ("rest", 1.0, 0.1))),
        ("no number", ((math.nan, 1.0, 0.1),)),
        ("without end", ((math.inf, 1.0, 0.1),)),
        ("another word", (("all", 1.0, 0.1),)),
    ),
)
def test_stages_that_no_run_has_are_refused_in_one_sentence(what, rows):
    with pytest.raises(ValueError) as error:
        stages_in_steps(rows, steps_per_epoch=10, epochs=5)
    told = str(error.value)
    assert told.startswith("stages: ") and "\n" not in told


def test_without_stages_there_is_no_learning_rate():
    for ask in (lambda: sawtooth_lr(0, (), 1e-3), lambda: scale_by_sawtooth((), 1e-3).init({})):
        with pytest.raises(ValueError, match="stages: there are none"):
            ask()


@pytest.mark.parametrize("integer", (np.int8, np.int32, np.int64, np.uint8, np.uint64))
def test_cycles_may_be_counted_by_numpy(integer):
    @few
    @given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 40))
    @example(1, 0, 2, 0, 1)
    def same_rates(every, warmup, stable, fall, cycle):
        values = {"every": every, "warmup": warmup, "stable": stable, "fall": fall}
        by_numpy = {name: integer(value) for name, value in values.items()}
        for kind in ("step", "wsd"):
            plain = CycleLR(kind, 5e-5, 0.5, final=0.2, **values)(cycle)
            assert CycleLR(kind, 5e-5, 0.5, final=0.2, **by_numpy)(cycle) == plain
            assert CycleLR(kind, 5e-5, 0.5, final=0.2, **by_numpy)(integer(cycle)) == plain

    same_rates()


@pytest.mark.parametrize("value", (True, np.True_, 2.0, np.float32(2), "2", None))
def test_cycles_are_counted_by_nothing_else(value):
    with pytest.raises(ValueError, match="every: must be a whole number of at least 1, not"):
        CycleLR("step", 5e-5, 0.5, every=value)


KEYS = st.one_of(
    st.sampled_from(("learning_rate", "training", "cycle_1", "min_lr", "a", "no", "7", "1.5")),
    st.text(st.sampled_from("abcxyz_é漢 "), min_size=1, max_size=6).filter(lambda key: key == key.strip()),
)
MAPPINGS = st.recursive(
    st.one_of(st.integers(0, 9), st.floats(0, 1)),
    lambda inner: st.lists(st.tuples(KEYS, inner), min_size=1, max_size=3, unique_by=lambda pair: pair[0]),
    max_leaves=8,
).filter(lambda value: isinstance(value, list))


def mappings_in(value):
    """Every mapping of nested ones, the outermost first."""
    if isinstance(value, list):
        yield value
        for _, inner in value:
            yield from mappings_in(inner)


def depth_of(value):
    return 1 + max(depth_of(inner) for _, inner in value) if isinstance(value, list) else 0


def as_block(pairs, indent=""):
    return "".join(
        f'{indent}"{key}":\n{as_block(value, indent + "  ")}'
        if isinstance(value, list)
        else f"{indent}{key}: {value}\n"
        for key, value in pairs
    )


def as_flow(value):
    """As JSON, which is YAML."""
    if not isinstance(value, list):
        return str(value)
    return "{" + ", ".join(f'"{key}": {as_flow(inner)}' for key, inner in value) + "}"


def refusal_of_yaml(text):
    try:
        from_yaml(text)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@fuzz
@given(MAPPINGS, st.data(), st.sampled_from((as_block, as_flow)))
def test_a_key_that_is_written_twice_is_refused_by_name(pairs, data, write):
    assume(depth_of(pairs) <= 6)
    assert "is written twice" not in refusal_of_yaml(write(pairs)), "none is, though other mappings may have it too"
    mapping = data.draw(st.sampled_from(list(mappings_in(pairs))))
    key, value = data.draw(st.sampled_from(mapping))
    mapping.insert(data.draw(st.integers(0, len(mapping))), (key, data.draw(st.sampled_from((value, 0.5)))))
    assert f"{shown_name(key)}: is written twice; keep one of them" in refusal_of_yaml(write(pairs))


def test_schedules_as_they_are_written_hold_every_key_once():
    rates = "learning_rate_schedule:\n  cycle_1: 5.0e-5\n  cycle_2: 4.0e-5\n"
    assert from_yaml(f"training:\n  learning_rate: {5e-5}\n")(1) == 5e-5 and from_yaml(rates)(2) == 4e-5
    assert refusal_of_yaml(f"{rates}  cycle_1: 5.0e-5\n").startswith("cycle_1: is written twice")
    assert refusal_of_yaml("learning_rate: 1.0e-3\n'learning_rate': 1.0e-3\n").startswith("learning_rate: is written")


@pytest.mark.parametrize(
    "written", ("010", "-010", "0o10", "0x10", "0b1", "1:30", "1:30.5", "0_7", "!!int 010", "!!float 1:30")
)
@pytest.mark.parametrize(
    "text", ("learning_rate: {}", "training: {{min_lr: {}}}", "learning_rate_schedule:\n  cycle_1: {}")
)
def test_a_number_that_yaml_takes_for_another_is_refused_by_its_key(text, written):
    number = written.split()[-1]
    key = re.findall(r"(\w+): {}", text)[0]
    told = refusal_of_yaml(text.format(written))
    assert told.startswith(("learning_rate_schedule.", key)) and number in told and "is no" in told


def test_a_number_is_taken_as_it_is_written():
    for written, expected in (
        ("10", 10),
        ("0.5", 0.5),
        ("0", 0),
        ("1e-3", 1e-3),
        ("'010'", 10),
        ("1_0", 10),
        (".5", 0.5),
    ):
        assert from_yaml(f"learning_rate: 20\nmin_lr: {written}").floor == expected, written


HUGE = st.integers(64, 9999).flatmap(lambda bits: st.sampled_from((2**bits, -(2**bits) - 1)))
SURROGATES = st.characters(categories=["Cs"]).filter(lambda c: not "\udc80" <= c <= "\udcff").map(lambda c: f"a{c}b")
PLACES = (
    lambda value: value,
    lambda value: (value,),
    lambda value: [["rest", value, 0]],
    lambda value: ((value, 1.0, 0.1),),
    lambda value: ((0, 128), (value, "full")),
    lambda value: (("mlp", value),),
)


@settings(fuzz, max_examples=600)
@given(st.sampled_from(sorted(keys())), HUGE | SURROGATES, st.sampled_from(PLACES), st.booleans())
@example("lr.stages", 10**400, PLACES[2], False)
@example("optim.spectral_lr", 10**400, PLACES[5], False)
@example("raft.lr_rates", 10**400, PLACES[1], True)
@example("mesh.fsdp", 10**5000, PLACES[0], False)
@example("curriculum.schedule", 10**5000, PLACES[4], False)
@example("curriculum.check_every", 10**400, PLACES[0], False)
@example("data.separator", "\ud800", PLACES[0], False)
def test_no_key_holds_a_number_beyond_64_bits_or_half_a_character(name, value, place, is_raft):
    """But for whole numbers in the place of others, which are rounded as in Python."""
    values = (raft_values() if is_raft else tiny_values()).to_dict()
    section, _, key = name.rpartition(".")
    (values[section] if section else values)[key] = place(value)
    try:
        found = getattr(getattr(read_config(values, with_data=False), section), key)
        assert type(found) is float and found == float(value)
    except ConfigError as error:
        told = [fault for fault in error.faults if fault.startswith(f"config.{name}: ")]
        assert len(told) == 1 and told[0].isprintable() and told[0].endswith(".") and "Exceeds" not in told[0]


LOSSES = st.floats(0.01, 20).map(lambda loss: round(loss, 3))


@st.composite
def logs(draw):
    """A text log with every kind of line that is read."""
    lines, step = [], 0
    for epoch in range(draw(st.integers(1, 3))):
        for loss in draw(st.lists(LOSSES, min_size=1, max_size=6)):
            step = draw(st.integers(1, 9)) + step % 900
            lines.append(
                f"  step {step}/1000 loss={loss} lr={draw(LOSSES) / 1e4:.2e} cutoff={draw(st.integers(1, 513))}"
            )
        lines.append(f"Epoch {epoch} avg_loss={draw(LOSSES)} cutoff=128/513")
        lines.append(f"Epoch {epoch + 1} 🚀 CUTOFF RAISED: {128 << epoch} -> {256 << epoch} (loss plateaued)")
        lines.append("  LR REDUCED: 2.0e-4 → 1.0e-4 (precision mode)")
    lines.append(f"loss: {' → '.join(map(str, draw(st.lists(LOSSES, min_size=2, max_size=4))))}")
    return "\n".join(["The loss went down, and so did the 3.5 cats.", *lines, ""])


def coloured(text):
    """Every word and every number in colours, and a link."""
    words = re.sub(r"[^\s=]+", lambda word: f"\x1b[1;38;5;208m{word[0]}\x1b[0m", text)
    return f"\x1b]8;;http://example.com\x07{words}\x1b]8;;\x07\x1b[2K"


WAYS = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with its mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16, little end first": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "colours": lambda text: coloured(text).encode(),
    "decimal commas": lambda text: re.sub(r"(\d)\.(\d)", r"\1,\2", text).encode(),
    "lines of Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "lines of a progress bar": lambda text: text.replace("\n", "\r").encode(),
    "all at once": lambda text: coloured(re.sub(r"(\d)\.(\d)", r"\1,\2", text)).replace("\n", "\r\n").encode("utf-16"),
}


@few
@given(logs())
def test_a_log_is_read_as_a_person_reads_it(tmp_path, text):
    (tmp_path / "log.txt").write_text(text, encoding="utf-8")
    expected = read_text_log(tmp_path / "log.txt")
    assert len(expected.records) > 3 and expected.facts.factor == 0.5
    assert {record["kind"] for record in expected.records} == {"train", "event"}
    for way, write in WAYS.items():
        (tmp_path / "other.txt").write_bytes(write(text))
        assert read_text_log(tmp_path / "other.txt") == expected, way


SMOOTH = "".join(f"step {10 * n}/1000 loss={3.5 - n / 10:.2f} lr=2.0e-4 cutoff=513\n" for n in range(1, 11))
RECOVERED = """
Epoch 1 avg_loss=2.86 cutoff=128/513
Epoch 2 🚀 CUTOFF RAISED: 128 -> 256 (the loss has plateaued)
  step 10/1000 loss=3.45 lr=2.0e-4 cutoff=256
  step 50/1000 loss=3.12 lr=1.9e-4 cutoff=256
  step 100/1000 loss=2.78 lr=1.7e-4 cutoff=256
"""


def findings_of(file, text):
    file.write_text(text)
    found = examine(file)
    return {f.rule: f for f in found if f.severity == WARNING}, {f.rule for f in found if f.severity == HEALTHY}


@pytest.mark.parametrize("number", ("nan", "NaN", "NAN", "inf", "-inf", "Inf", "Infinity"))
def test_a_log_that_ends_in_what_is_not_finite_is_not_healthy(tmp_path, number):
    assert findings_of(tmp_path / "log.txt", SMOOTH) == ({}, {"smooth_descent"})
    for line in (f"step 110/1000 loss={number} lr=1.7e-4 cutoff=513", f"step 110/1000 loss={number}"):
        warnings, healthy = findings_of(tmp_path / "log.txt", f"{SMOOTH}{line}\n{line.replace('110', '120')}\n")
        assert set(warnings) == {"nonfinite_loss"} and healthy == set()
        finding = warnings["nonfinite_loss"]
        assert (finding.step, finding.evidence) == (110, {"not_finite": 2, "finite_later": 0})
        assert "not finite at step 110" in finding.text and "no later one is finite" in finding.text


def test_nor_is_a_recovery_before_it_healthy(tmp_path):
    assert findings_of(tmp_path / "log.txt", RECOVERED) == ({}, {"recovered_spike", "smooth_descent"})
    warnings, healthy = findings_of(tmp_path / "log.txt", f"{RECOVERED}step 110/1000 loss=nan lr=1e-4 cutoff=256\n")
    assert warnings["nonfinite_loss"].step == 2110 and healthy == set()


def test_a_log_may_hold_no_number_at_all(tmp_path):
    warnings, healthy = findings_of(tmp_path / "log.txt", "step 10/1000 loss=nan\nstep 20/1000 loss=nan\n")
    assert set(warnings) == {"nonfinite_loss"} and healthy == set()
    assert (warnings["nonfinite_loss"].step, warnings["nonfinite_loss"].evidence["not_finite"]) == (10, 2)


def test_other_lines_may_tell_of_no_number_too(tmp_path):
    warnings, healthy = findings_of(tmp_path / "log.txt", "loss: 3.0 → 2.95 → 2.90 → nan → 2.85 (smooth)")
    assert (warnings["nonfinite_loss"].step, healthy) == (40, set())
    assert warnings["nonfinite_loss"].evidence == {"not_finite": 1, "finite_later": 1}
    warnings, healthy = findings_of(tmp_path / "log.txt", "Epoch 0 avg_loss=2.86\nEpoch 1 avg_loss=nan\n")
    assert (warnings["nonfinite_loss"].step, healthy) == (2000, set())


SOURCE_LOG = """
step:0/40 val_loss:10.8 lr_mul:1.0 spec_attn:[0.5, -0.5] spec_mlp:[0.1]
step:10/40 val_loss:4.5 lr_mul:1.0 spec_attn:[0.4, nan] spec_mlp:[0.2]
step:20/40 val_loss:nan lr_mul:0.5 spec_attn:[nan, nan] spec_mlp:[nan]
step:30/40 val_loss:inf lr_mul:nan
step:40/40 val_loss:-inf lr_mul:0.1
"""


def test_a_comparison_draws_what_is_finite_and_says_how_much_is_not(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.txt").write_text(SOURCE_LOG)
    (tmp_path / "good.txt").write_text("step:0/9 val_loss:5.0\nstep:9/9 val_loss:4.0\n")
    (tmp_path / "run").mkdir()
    records = [{"kind": "train", "step": step, "loss": loss, "lr": 1e-3} for step, loss in ((1, 2.5), (2, None))]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    drawn, draw = {}, compare_runs.draw
    monkeypatch.setattr(compare_runs, "draw", lambda runs, file: drawn.update(runs) or draw(runs, file))
    picture = tmp_path / "picture.png"
    runs = [str(tmp_path / name) for name in ("bad.txt", "good.txt", "run")]
    assert compare_runs.main([*runs, f"--out={picture}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "bad.txt: 3 of 5 values of val_loss are not finite and not drawn",
        "bad.txt: 1 of 5 values of lr are not finite and not drawn",
        "bad.txt: 1 of 3 values of rho are not finite and not drawn",
        "run: 1 of 2 values of loss are not finite and not drawn",
        str(picture),
    ]
    assert drawn["bad.txt"]["val_loss"] == [(0, 10.8), (10, 4.5)] and picture.stat().st_size > 5000
    assert drawn["bad.txt"]["lr"] == [(0, 1.0), (10, 1.0), (20, 0.5), (40, 0.1)]
    assert drawn["bad.txt"]["rho"] == [(0, pytest.approx(1.1 / 3)), (10, pytest.approx(0.3))]
    assert drawn["run"]["loss"] == [(1, 2.5)] and drawn["good.txt"]["val_loss"] == [(0, 5.0), (9, 4.0)]


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("decimal commas", "all at once")])
def test_a_comparison_reads_a_log_however_it_was_written_down(tmp_path, way):
    text = "step:0/9 val_loss:5.0 lr_mul:1.0\nstep:9/9 val_loss:4.0 lr_mul:0.5 spec_attn:[0.5, -0.25]\n"
    (tmp_path / "log.txt").write_bytes(WAYS[way](text))
    found = {name: points for name, points in compare_runs.read_run(tmp_path / "log.txt").items() if points}
    assert found == {"val_loss": [(0, 5.0), (9, 4.0)], "lr": [(0, 1.0), (9, 0.5)], "rho": [(9, 0.375)]}


HUGE = 10**400  # Which no float holds.


@pytest.mark.parametrize(
    "field,record",
    (
        *(("loss", {"kind": "train", "step": 3, "loss": loss}) for loss in ("3.0", [1.0], {}, True, HUGE, -HUGE)),
        ("loss", {"kind": "train", "step": HUGE, "loss": 1.0}),
        ("bpb", {"kind": "eval", "step": 3, "bpb": "2.0"}),
        *(("rho", {"kind": "radial", "step": 3, "rho": rho}) for rho in ([1, 2], {"w": 3}, {"w": ["x"]}, "0.5", HUGE)),
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_of_another_kind_is_counted_and_not_drawn(tmp_path, capsys, field, record):
    good = [{"kind": "train", "step": step, "loss": 2.0} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (*good, record)))
    assert compare_runs.main([str(tmp_path), f"--out={tmp_path / 'a.png'}"]) == 0
    count = 3 if field == "loss" else 1
    assert f"{tmp_path.name}: 1 of {count} values of {field} are not finite and not drawn\n" in capsys.readouterr().out


@fuzz
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("loss", "lr", "bpb", "rho", "cutoff"), JSON))))
def test_records_of_any_values_can_be_compared(values):
    kinds = ("train", "eval", "radial")
    records = [{"kind": kinds[i % 3], "step": i, **value} for i, value in enumerate(values)]
    finite, left_out = compare_runs.finite_part(compare_runs.series_of_records(records))
    assert all(isinstance(x, float) and math.isfinite(x) for points in finite.values() for p in points for x in p)
    assert all(count > 0 for count in left_out.values())


@pytest.mark.parametrize("line", ("step:1/9 val_loss:1.2.3", "step:1/9 val_loss:..", f"step:{'1' * 5000}/9 val_loss:4"))
def test_a_number_of_a_log_that_is_none_is_counted_and_not_drawn(tmp_path, capsys, line):
    (tmp_path / "log.txt").write_text(f"step:0/9 val_loss:5.0\n{line}\n")
    assert compare_runs.main([str(tmp_path / "log.txt"), f"--out={tmp_path / 'a.png'}"]) == 0
    assert "log.txt: 1 of 2 values of val_loss are not finite and not drawn\n" in capsys.readouterr().out


def test_a_comparison_of_nothing_finite_is_refused(tmp_path, capsys):
    (tmp_path / "bad.txt").write_text("step:0/9 val_loss:nan\n")
    assert compare_runs.main([str(tmp_path / "bad.txt"), f"--out={tmp_path / 'picture.png'}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "picture.png").exists()


NAMES = st.from_regex(r"[a-z_]{1,6}(\.[a-z_]{1,6}){0,2}", fullmatch=True)
PLAIN = st.from_regex(r"[A-Za-z0-9_./+-][A-Za-z0-9_./+'-]{0,8}", fullmatch=True).filter(lambda text: text[-1] != "'")
BRACKETED = st.lists(st.sampled_from(("1", "0.5", "'a b'", "'rest'", "(2, 3)")), min_size=1, max_size=3).map(
    lambda items: f"({', '.join(items)},)"
)
ANY = st.text(st.sampled_from("ab1 ,;:=()[]{}'\"\n\t🚀é"), min_size=1, max_size=10)


@st.composite
def written_values(draw):
    """A value, and a way in which it is written on a command line."""
    value = draw(st.one_of(PLAIN, BRACKETED, ANY))
    if not re.search(r"[^\w./+'-]", value) and value[0] != "'" and value[-1] != "'" and draw(st.booleans()):
        return value, value
    if value.startswith("(") and value.endswith(",)") and draw(st.booleans()):
        return value, value
    quotes = [quote for quote in "'\"" if quote not in value]
    assume(quotes)
    quote = draw(st.sampled_from(quotes))
    return value, f"{quote}{value}{quote}"


@fuzz
@given(
    st.from_regex(r"[a-z0-9 .+'-]{1,9}", fullmatch=True),
    st.lists(st.tuples(NAMES, written_values()), max_size=4),
    st.sampled_from((" ", "   ")),
)
@example("it's", [("sample.prompt", ("don't stop", '"don\'t stop"')), ("lr.base", ("1e-3", "1e-3"))], " ")
def test_arms_are_read_as_they_were_meant(name, overrides, blanks):
    text = f"{name}:{blanks}" + blanks.join(f"{key}={written}" for key, (_, written) in overrides)
    assert parse_arm(text) == (name.strip(), tuple(f"{key}={value}" for key, (value, _) in overrides))


@fuzz
@given(NAMES, st.lists(written_values(), min_size=1, max_size=4), st.sampled_from((",", ", ", " , ")))
@example("sample.prompt", [("a, b", "'a, b'"), ("don't", "don't"), ("(1, 2)", "(1, 2)")], ", ")
def test_grids_are_read_as_they_were_meant(key, values, comma):
    assert parse_grid(f"{key}={comma.join(written for _, written in values)}") == (key, [value for value, _ in values])


def test_an_arm_without_a_name_and_a_grid_that_is_given_twice_are_refused():
    """Each would run something else than was asked for."""
    with pytest.raises(ValueError, match="'lr.base=1e-3' has no name; write it as name: lr.base=1e-3"):
        parse_arm("lr.base=1e-3")
    with pytest.raises(ValueError, match="a key is there twice; give all its values at once"):
        trials_of([("a", ())], [("lr.base", ["1"]), ("lr.base", ["2"])], [0])


def test_a_raise_that_is_none_is_passed_over(tmp_path):
    (tmp_path / "a.log").write_text("[PLATEAU] 0 -> 0\nstep 10/1000 loss=3.4 cutoff=128\n[PLATEAU] 256 -> 128\n")
    assert [record["kind"] for record in read_text_log(tmp_path / "a.log").records] == ["train"]
    examine(tmp_path / "a.log")


def test_quotes_group_in_sweeps():
    arm = parse_arm("""don't: data.path='T/my corpus/x,y.txt' sample.prompt="it's" lr.stages=(('rest', 1.0, 0.1),)""")
    assert arm == ("don't", ("data.path=T/my corpus/x,y.txt", "sample.prompt=it's", "lr.stages=(('rest', 1.0, 0.1),)"))
    assert parse_arm("a: curriculum.ladder='a','b'")[1] == ("curriculum.ladder='a','b'",), "no one pair of quotes"
    assert parse_grid("data.path='/d/a,b.txt', /d/c.txt") == ("data.path", ["/d/a,b.txt", "/d/c.txt"])


@fuzz
@given(st.lists(st.tuples(st.integers(0, 999_999), st.integers(0, 9)), min_size=1, max_size=5), st.booleans())
def test_seeds_are_read_as_they_were_meant(ranges, has_blanks):
    comma, dash = (" , ", " - ") if has_blanks else (",", "-")
    text = comma.join(f"{first}{dash}{first + more}" if more else str(first) for first, more in ranges)
    assert parse_seeds(text) == [seed for first, more in ranges for seed in range(first, first + more + 1)]


@pytest.mark.parametrize(
    "parse,text,told",
    (
        *((parse_arm, f"a: {text}", "is not key=value") for text in ("x", "=1", "x=", "x=''", '""', "x=1 y")),
        *((parse_arm, f"a: {text}", "the quote ' is not closed") for text in ("x='1", "x='a b y=2", "x=1 'y=2")),
        (parse_arm, 'a: x="1 y=2', 'the quote " is not closed'),
        *((parse_grid, text, "is not key=v1,v2") for text in ("x", "x=", "=1", " =1", "x=,", "x='',1", "x= , ")),
        *((parse_grid, text, "is not closed") for text in ("x='1,2", 'x=1,"2')),
        *(
            (parse_seeds, text, "is no list of seeds; write 0,1,2 or 0-4")
            for text in ("", ",", "1,", "a", "1.0", "-1", "3-1", "1-", "1-2-3", "0-10000", "1e3", "0,,1", "1234567890")
        ),
    ),
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(parse, text, told):
    with pytest.raises(ValueError) as error:
        parse(text)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_most_seeds_that_are_taken():
    assert len(parse_seeds("0-9999")) == 10_000


def written_as(data, choices):
    """Some bytes as an argument, each of them as it is or as \\xNN."""
    pieces = [b"\\x%02x" % byte if is_code else bytes([byte]) for byte, is_code in zip(data, choices)]
    return os.fsdecode(b"".join(b"\\\\" if piece == b"\\" else piece for piece in pieces))


@fuzz
@given(st.binary(max_size=20), st.lists(st.booleans(), min_size=20, max_size=20))
@example(bytes(range(256))[:20], [True] * 20)
@example("\\x41 é\n".encode(), [False] * 20)
def test_any_bytes_can_be_written_with_escapes_and_without(data, choices):
    assert argument_bytes(written_as(data, choices), "--stop", True) == data
    assert argument_bytes(written_as(data, [True] * 20).upper().replace("\\X", "\\x"), "--stop", True) == data
    assert argument_bytes(os.fsdecode(data), "--stop", False) == data


def test_escapes_mean_what_they_mean_in_python():
    for text in (r"\n", r"\t", r"\r", r"\0", r"\\", r"\x00", r"\xfF", r"\\n", r"\\\n", r"a\x0ab\t", r"\\x41"):
        assert argument_bytes(text, "--stop", True) == text.encode().decode("unicode_escape").encode("latin-1")
        assert argument_bytes(text, "--stop", False) == text.encode()


@few
@given(st.text(max_size=5), st.one_of(st.characters(exclude_categories=["Cs"]), st.just("")))
@example("", "")
@example("", "x")
@example("", "x4")
@example("", "xg0")
@example("", "u0041")
@example("", "N")
def test_an_escape_that_means_nothing_is_refused_by_the_name_of_its_option(before, after):
    assume("\\" not in before and after[:1] not in tuple("ntr0\\"))
    for option in ("--prompt", "--stop"):
        with pytest.raises(UsageError) as error:
            argument_bytes(f"{before}\\{after}", option, True)
        assert str(error.value).startswith(f"{option}: ") and "\n" not in str(error.value)
