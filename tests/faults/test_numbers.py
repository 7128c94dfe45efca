"""Numbers and logs from elsewhere: extreme but legal ones, keys written twice, other encodings, what is not finite."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.trials import parse_arm, parse_grid, parse_seeds
from fftlm_jax.doctor.examine import examine
from fftlm_jax.doctor.text_log import read_text_log
from fftlm_jax.generation.sampling import SamplingConfig, log_probabilities
from fftlm_jax.generation.text import argument_bytes
from fftlm_jax.optim import scale_by_sawtooth, stages_in_steps
from fftlm_jax.raft.cycle_lr import CycleLR
from fftlm_jax.raft.lr_yaml import from_yaml
from fftlm_jax.recording.compare_runs import main as compare
from fftlm_jax.runtime.errors import UsageError


@settings(max_examples=60, deadline=None)
@given(
    st.floats(5e-324, 1e3),
    st.floats(5e-324, 1.0),
    st.floats(1e-300, 1e300),
    st.floats(0.0, 1.0),
    st.integers(0, 2**32 - 1),
)
def test_sampling_rules_never_leave_a_distribution_that_is_none(temperature, top_p, penalty, min_p, seed):
    logits = np.random.default_rng(seed).normal(0, 10, 256).astype(np.float32)
    config = SamplingConfig(temperature, 0, top_p, min_p, repetition_penalty=penalty, repetition_window=2)
    found = np.asarray(log_probabilities(jnp.asarray(logits), jnp.asarray([3, 7], jnp.int32), config), np.float64)
    assert not np.isnan(found).any() and np.exp(found).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("temperature", (9e-7, 1e-30, 1e-38, 1e-40, 5e-324))
def test_a_vanishing_temperature_is_greedy(temperature):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=256), jnp.float32)
    cold, greedy = (log_probabilities(logits, jnp.zeros(0, jnp.int32), SamplingConfig(t)) for t in (temperature, 0.0))
    np.testing.assert_array_equal(cold, greedy)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 30))
def test_stages_follow_each_other_also_in_parts_of_an_epoch(quarters, scale, rest):
    steps_per_epoch = 4 * scale
    rows = [(quarter / 4, 1.0, 0.1) for quarter in quarters]
    epochs = -(-sum(quarters) // 4) + rest
    table = stages_in_steps([*rows, ("rest", 1.0, 0.05)], steps_per_epoch, epochs)
    assert [stage.end - stage.start for stage in table[:-1]] == [quarter * scale for quarter in quarters]
    assert table[0].start == 0 and table[-1].end == epochs * steps_per_epoch
    assert all(a.end == b.start for a, b in zip(table, table[1:]))


@pytest.mark.parametrize(
    "rows,message",
    (
        ([(0.0005, 1, 0.1), ("rest", 1, 0.05)], "give whole steps"),
        ([(20, 1, 0.1), ("rest", 1, 0.05)], "would be steps 0 to 20000 of 10000"),
        ([(-2, 1, 0.1)], "would be steps 0 to -2000"),
        ([("rest", 1, 0.1), (2, 1, 0.05)], "'rest' stands last"),
        ([], "there are none"),
    ),
)
def test_stages_that_make_no_sense_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        stages_in_steps(rows, 1000, 10)


def test_numbers_of_numpy_are_numbers_and_an_empty_table_is_named():
    assert CycleLR("step", 5e-5, 0.5, every=np.int64(2))(3) == 2.5e-5
    with pytest.raises(ValueError, match="stages: there are none"):
        scale_by_sawtooth((), 1e-3).init({})


@given(st.integers(2, 8), st.data())
def test_a_key_that_is_written_twice_is_refused_by_name(cycles, data):
    lines = [f"  cycle_{n}: 1.0e-{n}" for n in range(1, cycles + 1)]
    assert from_yaml("\n".join(["learning_rate_schedule:", *lines]))(1) == 0.1
    twice = data.draw(st.integers(1, cycles))
    lines.insert(data.draw(st.integers(0, cycles)), f"  cycle_{twice}: 2.0e-3")
    with pytest.raises(ValueError, match=f"^cycle_{twice}: is written twice; keep one of them$"):
        from_yaml("\n".join(["learning_rate_schedule:", *lines]))


LOG = "Epoch 1 avg_loss=3.40\nstep 10/1000 loss=3.45 lr=2.0e-4 cutoff=128\nEpoch 2 CUTOFF RAISED: 128 -> 256\n"
LOG += "step 20/1000 loss=3.20 lr=2.0E-4 cutoff=256\nLR REDUCED: 2.0E-4 -> 1.0E-4\n"


@pytest.mark.parametrize(
    "content",
    (
        LOG.encode("utf-8-sig"),
        LOG.encode("utf-16"),
        b"\xfe\xff" + LOG.encode("utf-16-be"),
        LOG.replace("\n", "\r\n").encode(),
        "\n".join(f"\x1b[32m{line}\x1b[0m\x1b]0;title\x07" for line in LOG.split("\n"))
        .replace("loss", "\x1b[1mloss")
        .encode(),
        LOG.replace("3.", "3,").replace("2.0", "2,0").replace("1.0", "1,0").encode(),
    ),
    ids=("mark", "UTF-16", "UTF-16, big", "CRLF", "colours", "decimal commas"),
)
def test_a_log_is_read_as_a_person_reads_it(tmp_path, content):
    (tmp_path / "plain.log").write_text(LOG)
    (tmp_path / "other.log").write_bytes(content)
    plain, other = (read_text_log(tmp_path / name) for name in ("plain.log", "other.log"))
    assert len(plain.records) == 4 and other.records == plain.records and other.facts.factor == 0.5


@pytest.mark.parametrize("good", (2, 100))
def test_a_log_that_ends_in_what_is_not_finite_is_not_healthy(tmp_path, good):
    lines = [f"step {10 * i}/100000 loss={3.4 - i / 200:.3f} lr=2.0e-4 cutoff=128" for i in range(1, good + 1)]
    lines += [f"step {10 * (good + i)}/100000 loss={value}" for i, value in enumerate(("nan", "inf", "NaN"), start=1)]
    (tmp_path / "run.log").write_text("\n".join(lines))
    findings = {finding.rule: finding for finding in examine(tmp_path / "run.log")}
    assert findings["nonfinite_loss"].step == 10 * (good + 1) and "smooth_descent" not in findings


def test_a_picture_shows_what_is_finite_and_says_what_is_not(tmp_path, capsys):
    text = "step:0/9 val_loss:10.83 lr_mul:1.0\nstep:1/9 val_loss:7.91 spec_attn:[nan, 0.1]\nstep:2/9 val_loss:nan\n"
    (tmp_path / "a.log").write_text(text)
    assert compare([str(tmp_path / "a.log"), f"--out={tmp_path / 'a.png'}"]) == 0
    assert "a.log: 1 of 3 values of val_loss are not finite and not drawn" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_quotes_group_in_sweeps():
    arm = parse_arm("""don't: data.path='T/my corpus/x,y.txt' sample.prompt="it's" lr.stages=(('rest', 1.0, 0.1),)""")
    assert arm == ("don't", ("data.path=T/my corpus/x,y.txt", "sample.prompt=it's", "lr.stages=(('rest', 1.0, 0.1),)"))
    assert parse_grid("lr.base=1e-3, 2e-3") == ("lr.base", ["1e-3", "2e-3"])
    assert parse_grid("data.path='/d/a,b.txt',/d/c.txt") == ("data.path", ["/d/a,b.txt", "/d/c.txt"])
    assert parse_seeds("0-2, 7") == [0, 1, 2, 7]
    for seeds in ("", "0,", "3-1", "a", "-1", "0-999999999"):
        with pytest.raises(ValueError, match="is no list of seeds; write 0,1,2 or 0-4"):
            parse_seeds(seeds)
    with pytest.raises(ValueError, match="is not closed"):
        parse_arm("a: data.path='x")


@given(st.binary(max_size=20).filter(lambda data: b"\0" not in data))
def test_any_bytes_can_be_written_as_escapes(data):
    assert argument_bytes("".join(f"\\x{byte:02x}" for byte in data), "--stop", True) == data
    assert argument_bytes(r"a\n\t\\", "--stop", True) == b"a\n\t\\"
    assert argument_bytes(r"a\n", "--stop", False) == rb"a\n"
    with pytest.raises(UsageError, match="--stop: .* a backslash before what is no escape"):
        argument_bytes(r"a\q", "--stop", True)
