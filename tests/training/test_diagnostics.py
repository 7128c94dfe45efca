"""Every rule finds what it is for in a run that is healthy without it; a resumed run says what a straight one does."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest

from experiments.doctor_false_alarms import healthy_run, warnings_of
from fftlm_jax.curriculum import relative_improvement
from fftlm_jax.doctor import WARNINGS, diagnose
from fftlm_jax.doctor.evidence import HEALTHY, WARNING, facts_of, improvement_error, longest_alternation, measured_noise
from fftlm_jax.doctor.rules_health import distinct_share
from fftlm_jax.recording.history import History
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.training import run
from tests.tiny import tiny, tiny_values

pytestmark = pytest.mark.timeout(300)

EPOCH = 100
TEXT = "The plateau rule compares two halves of a window; nobody repeats himself in such a sentence for long."


def train_records(records, after=0, until=10**9):
    return [r for r in records if r["kind"] == "train" and after < r["step"] <= until]


def first_raise(records):
    return next(r for r in records if r.get("event") == "cutoff_raised")["step"]


@pytest.fixture
def healthy():
    """A made-up healthy run with raises, free to be spoiled."""
    records, facts = healthy_run(1)
    return copy.deepcopy(records), facts


def warned(records, facts, samples=()):
    return {rule for rule, _, _ in warnings_of(records, facts, samples)}


@pytest.mark.parametrize("seed", range(12))
def test_a_healthy_run_hears_no_warning(seed):
    records, facts = healthy_run(seed)
    assert list(warnings_of(records, facts)) == []
    assert {f.rule for f in diagnose(History(records), facts) if f.severity == HEALTHY} >= {
        "healthy_pace",
        "smooth_descent",
    }


def swing(records, facts):
    """The document's 3.00 and 3.11, at a period of 20 steps."""
    begin = first_raise(records)
    for r in train_records(records, begin + 20, begin + EPOCH):
        r["loss"] += 0.35 if (r["step"] // 10) % 2 else 0.0
    return records, facts


def bounce(records, facts):
    """The same from step to step."""
    begin = first_raise(records)
    for r in train_records(records, begin + 20, begin + EPOCH):
        r["loss"] += 1.5 if r["step"] % 2 else 0.0
    return records, facts


def stay_high(records, facts):
    for r in train_records(records, first_raise(records)):
        r["loss"] += 0.4
    return records, facts


def hardly_come_down(records, facts):
    """A spike that stays nearly as high as it was: 3.45, 3.44, 3.43."""
    begin = first_raise(records)
    before = np.mean([r["loss"] for r in train_records(records, begin - 50, begin)])
    for r in train_records(records, begin, begin + EPOCH):
        r["loss"] = before + 0.6 - 1e-4 * (r["step"] - begin)
    return records, facts


def unlifted(records, facts):
    """A restart that never came, late in a tooth."""
    begin = first_raise(records)
    for r in train_records(records, begin):
        r["lr"] = 0.1 * facts.base_lr
    return records, dataclasses.replace(facts, restart="none")


def straight_start(records, facts):
    for r in train_records(records, 0, EPOCH):
        r["loss"] = 5.5 - 0.002 * r["step"]
    return records, facts


def raise_every_epoch(records, facts):
    records = [r for r in records if r.get("event") != "cutoff_raised"]
    for epoch, rise in ((2, (32, 64)), (3, (64, 96))):
        event = {"kind": "event", "step": epoch * EPOCH, "event": "cutoff_raised", "from": rise[0], "to": rise[1]}
        records.insert(records.index(train_records(records, epoch * EPOCH)[0]), event)
    return records, facts


def never_raise(records, facts):
    rng = np.random.default_rng(0)
    for r in train_records(records):
        r["cutoff"] = 32
        r["loss"] = 2 + 3 * np.exp(-r["step"] / 40) + 0.05 * rng.normal()
    return [r for r in records if r.get("event") != "cutoff_raised"], facts


def trust_noise(records, facts):
    rule = dataclasses.replace(facts.curriculum, threshold=facts.curriculum.threshold / 20)
    return never_raise(records, dataclasses.replace(facts, curriculum=rule))


def clip_often(records, facts):
    return records, dataclasses.replace(facts, clip=0.3)


def vanish(records, facts):
    for r in train_records(records, 6 * EPOCH):
        r["grad_norm"] *= 0.05
    return records, facts


def overfit(records, facts):
    """Held-out losses turn at the ninth epoch; the training loss goes on falling, the learning rate too."""
    for r in train_records(records, 9 * EPOCH):
        r["lr"] = facts.base_lr * np.exp(-r["step"] / 1000)
        r["loss"] -= 0.001 * (r["step"] - 9 * EPOCH)
    for r in records:
        if r["kind"] == "eval" and r["step"] > 9 * EPOCH:
            r["loss"] += 0.0004 * (r["step"] - 9 * EPOCH)
    return records, facts


def turn_nan(records, facts):
    for r in train_records(records, 9 * EPOCH):
        r["loss"] = None
    return records, facts


SPOILED = (
    ("nonfinite_loss", turn_nan),
    ("oscillation", swing),
    ("oscillation", bounce),
    ("unrecovered_spike", stay_high),
    ("unrecovered_spike", hardly_come_down),
    ("slow_descent", hardly_come_down),
    ("low_learning_rate", unlifted),
    ("slow_descent", straight_start),
    ("raises_every_epoch", raise_every_epoch),
    ("no_raise", never_raise),
    ("threshold_in_noise", trust_noise),
    ("clipped_gradients", clip_often),
    ("tiny_gradients", vanish),
    ("overfitting", overfit),
)


@pytest.mark.parametrize("rule,spoil", SPOILED, ids=lambda value: getattr(value, "__name__", value))
def test_each_rule_finds_what_it_is_for(healthy, rule, spoil):
    assert rule in warned(*spoil(*healthy))


def test_every_warning_is_tried():
    assert {rule for rule, _ in SPOILED} | {"repetitive_samples"} == set(WARNINGS)


def test_each_warning_has_evidence_and_one_thing_to_change(healthy):
    for _, spoil in SPOILED:
        records, *others = spoil(*copy.deepcopy(healthy))
        for finding in diagnose(History(records), *others):
            if finding.severity == WARNING:
                assert finding.evidence and finding.change and np.isfinite(list(finding.evidence.values())).all()


def losses(text):
    return [int(number) / 100 for number in text.split()]


# The first 100 losses of two runs (width 64, two layers, 16 windows of 128 bytes of the standard library a step), times
# 100: at a thirtieth of a fitting learning rate, and at that rate.
RECORDED_SLOW = losses("""
555 554 552 552 551 551 551 548 548 546 546 545 546 546 542 541 542 541 538 542 540 540 539 535 534 533 535 533 535 531
530 528 529 526 529 527 526 522 526 519 517 518 524 515 521 513 515 515 517 510 509 507 507 509 502 506 501 503 500 502
502 501 500 493 499 494 495 497 492 488 490 487 494 484 487 484 483 485 482 477 475 483 473 475 470 484 472 462 470 470
473 464 462 461 464 465 471 465 460 462""")
RECORDED_GOOD = losses("""
555 528 506 485 460 440 424 380 367 345 344 340 343 350 306 301 329 311 287 316 300 312 318 281 280 282 288 281 308 281
267 264 267 259 270 266 266 250 265 242 247 247 269 239 260 236 245 251 257 240 237 231 238 238 216 248 232 239 225 245
240 234 238 222 233 232 221 232 239 218 237 227 228 224 226 223 222 231 233 203 209 238 216 212 210 245 215 207 234 201
232 213 199 212 215 225 212 212 206 213""")


@pytest.mark.parametrize("recorded,is_slow", ((RECORDED_SLOW, True), (RECORDED_GOOD, False)))
def test_a_start_that_was_recorded(healthy, recorded, is_slow):
    _, facts = healthy
    step = {"lr": facts.base_lr, "cutoff": 32, "grad_norm": 0.5}
    records = [{"kind": "train", "step": i + 1, "loss": loss, **step} for i, loss in enumerate(recorded)]
    rules = {f.rule for f in diagnose(History(records), facts) if f.severity == WARNING}
    assert rules == ({"slow_descent"} if is_slow else set())


def test_weights_of_another_run_need_not_fall(healthy):
    _, facts = healthy
    step = {"lr": facts.base_lr, "cutoff": 32, "grad_norm": 0.5}
    records = [{"kind": "train", "step": i + 1, "loss": loss, **step} for i, loss in enumerate(RECORDED_SLOW)]
    warm = dataclasses.replace(facts, is_fresh=False)
    assert {f.rule for f in diagnose(History(records), warm)} == {"smooth_descent", "noise"}


def test_min_epoch_is_named_where_it_blocks(healthy):
    records, facts = never_raise(*healthy)
    change = {f.rule: f.change for f in diagnose(History(records), facts)}["no_raise"]
    assert change.startswith(f"curriculum.threshold={2 * facts.curriculum.threshold:g}"), "larger raises sooner"
    blocked = dataclasses.replace(facts, curriculum=dataclasses.replace(facts.curriculum, min_epoch=14))
    assert "curriculum.min_epoch: 14" in {f.rule: f.change for f in diagnose(History(records), blocked)}["no_raise"]


def test_too_fast_asks_for_a_smaller_threshold(healthy):
    records, facts = raise_every_epoch(*healthy)
    finding = {f.rule: f for f in diagnose(History(records), facts)}["raises_every_epoch"]
    assert finding.change.startswith(f"curriculum.threshold={facts.curriculum.threshold / 2:g}")
    assert finding.step == 200, "the first raise counts: it came as early as it could"
    scheduled = dataclasses.replace(facts, curriculum=dataclasses.replace(facts.curriculum, name="schedule"))
    assert "raises_every_epoch" not in {f.rule for f in diagnose(History(records), scheduled)}


def test_a_reduction_that_was_asked_for_is_no_low_learning_rate(healthy):
    records, facts = unlifted(*healthy)
    reduced = dataclasses.replace(facts, factor=0.25)
    assert "low_learning_rate" in warned(records, facts)
    assert "low_learning_rate" not in warned(records, reduced)


def test_a_warning_is_said_once_while_it_lasts_and_again_when_it_returns(healthy):
    records, facts = healthy
    for r in train_records(records, 300, 600) + train_records(records, 900, 1200):
        r["grad_norm"] = 2.0
    said = [(rule, step) for rule, step, _ in warnings_of(records, facts)]
    assert said == [("clipped_gradients", 300), ("clipped_gradients", 900)]


def test_samples(healthy):
    records, facts = healthy
    same = [(100 * i, "for i in range(10): " * 7) for i in range(1, 4)]
    mixed = [(100, same[0][1]), (200, TEXT), (300, same[0][1])]
    spaces = [(100, " " * 128), (200, " " * 128)]
    assert warned(records, facts, same) == warned(records, facts, spaces) == {"repetitive_samples"}
    assert warned(records, facts, mixed) == warned(records, facts, [(100, TEXT), (200, TEXT)]) == set()
    greedy = dataclasses.replace(facts, temperature=0.0)
    changes = {f.rule: f.change for f in diagnose(History(records), greedy, same)}
    assert changes["repetitive_samples"].startswith("sample.temperature"), "not the training is at fault"


def test_the_share_of_distinct_pieces():
    indented = (
        "    def f(self):\n        if self.x is None:\n            raise ValueError(self.name)\n        return 1\n"
    )
    assert distinct_share("short") is None
    assert distinct_share("=" * 100) < 0.05 < 0.8 < distinct_share(indented)


def test_noise_is_measured_through_a_trend_and_spikes():
    rng = np.random.default_rng(0)
    curve = 5 * np.arange(1, 201) ** -0.5
    noisy = curve + 0.1 * rng.normal(size=200)
    noisy[50] += 5
    assert measured_noise(noisy) == pytest.approx(0.1, rel=0.2)
    assert measured_noise(noisy[:39]) is None


def test_the_error_of_the_improvement_is_what_noise_makes_it():
    """Against the plateau rule itself, on flat losses."""
    rng = np.random.default_rng(0)
    seen = [relative_improvement((2 + 0.1 * rng.normal(size=50)).tolist(), 50) for _ in range(2000)]
    assert np.std(seen) == pytest.approx(improvement_error(0.1, 50, 2.0), rel=0.05)


@pytest.mark.parametrize(
    "case,values,least,expected",
    (
        ("the document's", (3.45, 3.15, 3.0, 3.11, 2.99, 3.105), 0.1, (-0.15, 0.11, -0.12, 0.115)),
        ("a small swing breaks it", (0, 1, 0, 1, 0.95, 0, 1), 0.5, (1, -1, 1)),
        ("monotone", (3, 2, 1), 0.5, ()),
        ("one value", (3,), 0.5, ()),
        ("nothing", (), 0.5, ()),
    ),
)
def test_the_longest_alternation(case, values, least, expected):
    np.testing.assert_allclose(longest_alternation(np.array(values, float), least), expected, atol=1e-9)


def test_nothing_is_said_of_a_run_without_steps(healthy):
    _, facts = healthy
    assert diagnose(History(), facts) == []
    (only,) = diagnose(History([{"kind": "train", "step": 1, "loss": None, "nonfinite": True}]), facts)
    assert (only.rule, only.step) == ("nonfinite_loss", 1)
    assert (
        diagnose(History(), facts_of(tiny(curriculum__rule="none", lr__schedule="cooldown", lr__restart="none"))) == []
    )


def test_a_run_says_its_warnings_and_a_resumed_one_the_same(tmp_path, capsys):
    """On the console, in metrics.jsonl and in TensorBoard's text; decided by the records alone."""
    values = tiny_values(
        train__steps_per_epoch=55,
        train__epochs=2,
        lr__base=1e-7,
        curriculum__min_epoch=2,
        train__accum_steps=1,
        eval__every=50,
        checkpoint__every=80,
        checkpoint__keep_last=3,
        sample__bytes=0,
    )
    run(values, tmp_path / "run")
    straight = said_in(tmp_path / "run")
    assert [(r["step"], r["rule"], r["at"]) for r in straight] == [(0, "unreachable_rung", 0), (100, "slow_descent", 0)]
    output = capsys.readouterr().out
    assert all(output.count(f"⚠ {r['rule']}: {r['text']}. Change {r['change']}") == 1 for r in straight)
    events = b"".join(file.read_bytes() for file in (tmp_path / "run" / "tensorboard").iterdir())
    assert all(r["text"].encode() in events for r in straight)
    for step in (100, 110):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    run(values, tmp_path / "run")
    assert "resuming from step 80" in capsys.readouterr().out
    assert said_in(tmp_path / "run") == straight


def said_in(workdir):
    return [r for r in read_metrics(workdir / "metrics.jsonl") if r.get("event") == "warning"]
