"""`fftlm_jax.evaluate`: every byte in its place and scored once, and a command line that says what is wrong."""

import contextlib
import errno
import functools
import gzip
import io
import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.data import evaluation_batches
from fftlm_jax.evaluation import evaluate_run
from fftlm_jax.evaluation.generated_text import generate, statistics
from fftlm_jax.evaluation.held_out_bpb import bpb_by_range, make_evaluate
from fftlm_jax.generation import Decoder, sampling_of
from fftlm_jax.model import build, score
from fftlm_jax.training import run
from tests.generation.made_up_run import copy_with
from tests.tiny import ROOT, tiny_values


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished chunk run on a small text of its own, with an average of the weights. It sees 8 bytes."""
    folder = tmp_path_factory.mktemp("evaluated")
    text = np.random.default_rng(0).choice(np.frombuffer(b"abcd efgh\n", np.uint8), 6000)
    (folder / "corpus.txt").write_bytes(text.tobytes())
    small = {"model__n_layers": 1, "model__kernel_len": 8, "curriculum__rule": "none", "sample__bytes": 0}
    path = str(folder / "corpus.txt")
    values = tiny_values(**small, train__epochs=1, data__path=path, optim__ema_decay=0.5, eval__max_bytes=0)
    run(values, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def saved(workdir):
    return saved_run.load(workdir, "last")


@functools.cache
def compiled_evaluation(config, low_pass):
    return make_evaluate(config, build(config.model)[0], low_pass)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Evaluations of equal configs are compiled once for all tests; pictures are drawn where they are looked at."""
    monkeypatch.setattr(
        evaluate_run, "make_evaluate", lambda config, _, low_pass: compiled_evaluation(config, low_pass)
    )
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(evaluate_run, "draw", lambda tally, found, file, title: file.touch())


ONLY_SCORES = ("--contexts=0", "--generate=0")
TEXT = np.random.default_rng(1).integers(97, 105, 777).astype(np.uint8)


def test_every_byte_but_the_first_chunks_is_scored_exactly_once(saved):
    """24 windows of 32 and a rest of 9 bytes; chunks of 4."""
    tally = evaluate_run.tally_of(saved, TEXT)
    assert tally.next_byte_count_T.sum() == len(TEXT) - 1
    assert tally.chunk_count_NC.sum() == len(TEXT) - 4
    np.testing.assert_array_equal(tally.next_byte_count_T, [25] * 8 + [24] * 24)
    assert tally.chunk_count_NC.shape == (8, 4)


def test_places_add_up_to_the_loss_of_each_byte(saved):
    graph, _ = build(saved.config.model)

    @jax.jit
    def nats_of(windows_BW, valid_B):
        scores = score(graph, saved.params, windows_BW, saved.low_pass, chunk=4, with_chunk=False, valid_B=valid_B)
        return (scores.next_byte_BT * scores.next_byte_weight_BT).sum(axis=0)

    nats = sum(np.asarray(nats_of(*batch)) for batch in evaluation_batches(TEXT, 32, 4, 5))
    tally = evaluate_run.tally_of(saved, TEXT)
    np.testing.assert_allclose(tally.next_byte_T, nats, rtol=1e-4)
    found = evaluate_run.results(saved, tally, len(TEXT))
    assert found["bpb"] == pytest.approx(nats.sum() / (len(TEXT) - 1) / math.log(2), rel=1e-4)
    weights = tally.chunk_count_NC.sum(axis=0)
    mean = np.average(found["chunk_bpb_by_offset"], weights=weights)
    assert mean == pytest.approx(found["chunk_bpb"], abs=1e-3)


def test_places_in_words_cover_every_byte_once(saved):
    """Scored by word places as by positions, and classed as a plain loop over the text classes them."""
    text = np.frombuffer(b"def f_1(x): return caf\xc3\xa9 + 42\n" * 12, np.uint8)
    tally = evaluate_run.tally_of(saved, text)
    assert tally.word_P.sum() == pytest.approx(tally.next_byte_T.sum(), rel=1e-5)
    is_word = [chr(b).isalnum() or b == ord("_") or b >= 128 for b in text.tolist()]
    expected = [0, 0, 0]
    for before, here in zip(is_word, is_word[1:]):
        expected[2 if not here else 1 if before else 0] += 1
    assert tally.word_count_P.tolist() == expected
    found = evaluate_run.results(saved, tally, len(text))["bpb_by_word_place"]
    assert list(found) == ["word_first", "word_inner", "outside"] and all(v > 0 for v in found.values())


def test_ranges_cover_every_position_once(saved):
    tally = evaluate_run.tally_of(saved, TEXT)
    ranges = bpb_by_range(tally, 5)
    assert ranges[0][0] == 1 and ranges[-1][1] == 32
    assert all(after == last + 1 for (_, last, _), (after, _, _) in zip(ranges, ranges[1:]))
    weights = [tally.next_byte_count_T[first - 1 : last].sum() for first, last, _ in ranges]
    bpb = evaluate_run.results(saved, tally, len(TEXT))["bpb"]
    assert np.average([bits for *_, bits in ranges], weights=weights) == pytest.approx(bpb, rel=1e-6)


@pytest.mark.pictures
def test_the_command_agrees_with_the_run(workdir, saved, capsys):
    assert evaluate_run.main([str(workdir), "--step=last", *ONLY_SCORES]) == 0
    output = capsys.readouterr().out
    found = json.loads((workdir / f"evaluation_{saved.step}.json").read_text())
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [r for r in records if r["kind"] == "eval"][-1]
    for name in ("bpb", "chunk_bpb", "loss"):
        assert found[name] == pytest.approx(last[name], abs=1e-5)
    np.testing.assert_allclose(found["chunk_bpb_by_offset"], last["chunk_bpb_by_offset"], atol=2e-4)
    assert "599 bytes, each scored once" in output and "596 bytes, each scored once" in output
    assert (workdir / f"evaluation_{saved.step}.png").read_bytes().startswith(b"\x89PNG")
    assert evaluate_run.main([str(workdir), "--step=last", "--ema", *ONLY_SCORES]) == 0
    average = json.loads((workdir / f"evaluation_{saved.step}_ema.json").read_text())
    assert (average["weights"], found["weights"], found["text"]) == ("average", "raw", "held out")
    assert average["bpb"] == pytest.approx(last["ema_bpb"], abs=1e-5)


@pytest.fixture(scope="module")
def whole_evaluation(workdir, tmp_path_factory):
    """Arguments of an evaluation with all of its parts, but for where it goes; what it prints and writes."""
    arguments = [str(workdir), "--step=last", "--generate=512", "--contexts=50"]
    out = tmp_path_factory.mktemp("whole") / "e"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert evaluate_run.main([*arguments, f"--out={out}"]) == 0
    assert out.with_name("e.png").read_bytes().startswith(b"\x89PNG")
    return arguments, output.getvalue(), out.with_name("e.json").read_text()


def test_generated_text_stands_beside_what_the_text_has_there(workdir, saved, whole_evaluation):
    _, output, numbers = whole_evaluation
    found = json.loads(numbers)
    corpus = np.fromfile(workdir.parent / "corpus.txt", np.uint8)
    training, held_out = corpus[:5400], corpus[5400:]
    generated = generate(saved, held_out, 512)
    places = found["generation"]["places"]
    np.testing.assert_array_equal(generated.true_PN, [held_out[place : place + 64] for place in places])
    prompts = [held_out[place - generated.prompt : place].tobytes() for place in places]
    decoder = Decoder(saved.config.model, build(saved.config.model)[0], saved.low_pass)
    written = decoder.generate(saved.params, prompts, 64, sampling_of(saved.config.sample))
    assert written == [piece.tobytes() for piece in generated.written_PN]
    for name, pieces in (("generated", generated.written_PN), ("text", generated.true_PN)):
        assert found["generation"][name] == json.loads(json.dumps(statistics(pieces, training)))
    assert [row["context"] for row in found["by_context"]["lengths"]] == [1, 2, 4, 8]
    assert "more than with 8; the same 50 bytes" in output
    assert "8 x 64 bytes generated, each after 8 bytes" in output and "of 5,400 bytes of training text" in output


def test_a_corpus_that_stays_in_its_files_gives_the_same_numbers(whole_evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr("fftlm_jax.data.corpus.MEMORY_LIMIT", 0)
    arguments, _, in_memory = whole_evaluation
    assert evaluate_run.main([*arguments, f"--out={tmp_path / 'files'}"]) == 0
    assert (tmp_path / "files.json").read_text() == in_memory


def test_parts_can_be_left_out_and_what_is_missing_is_said(workdir, tmp_path, capsys):
    assert evaluate_run.main([str(workdir), *ONLY_SCORES, f"--out={tmp_path / 'e'}"]) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["by_context"] is None and found["generation"] is None and found["notes"] == []
    assert evaluate_run.main([str(workdir), "--contexts=0", "--generate=4096", f"--out={tmp_path / 'e'}"]) == 0
    assert "No generated text: 600 bytes hold no prompt and 4096 bytes" in capsys.readouterr().out


def test_another_text_can_be_scored(workdir, tmp_path, capsys):
    (tmp_path / "other.txt").write_bytes(TEXT.tobytes())
    scored = [str(workdir), f"--text={tmp_path / 'other.txt'}", "--contexts=0"]
    assert evaluate_run.main([*scored, f"--out={tmp_path / 'new' / 'e'}"]) == 0
    assert "777 bytes of text" in capsys.readouterr().out and (tmp_path / "new" / "e.png").exists()
    before = sorted(workdir.glob("evaluation_*"))
    for more in ([], ["--max_bytes=500"], [f"--out={tmp_path / 'lr_0.1'}"], [f"--out={tmp_path / 'lr_0.2'}"]):
        assert evaluate_run.main([*scored, *more]) == 0
    assert {p.name for p in tmp_path.glob("lr*")} == {f"lr_0.{i}.{kind}" for i in (1, 2) for kind in ("json", "png")}
    new = {p.name for p in workdir.glob("evaluation_*")} - {p.name for p in before}
    assert len(new) == 4 and all("_other" in name for name in new), "the held-out evaluation is not replaced"


def test_a_packed_text_is_scored_as_the_plain_one(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "other.txt").write_bytes(TEXT.tobytes())
    (tmp_path / "other.txt.gz").write_bytes(gzip.compress(TEXT.tobytes()))
    found = []
    for name in ("other.txt", "other.txt.gz"):
        options = [f"--text={tmp_path / name}", "--contexts=0", "--generate=0", f"--out={tmp_path / 'e'}"]
        assert evaluate_run.main([str(workdir), *options]) == 0
        found.append(json.loads((tmp_path / "e.json").read_text()) | {"text": ""})
    assert found[0] == found[1]
    (tmp_path / "other.txt.gz").write_bytes(b"no gzip")
    assert evaluate_run.main([str(workdir), *options]) == 1
    assert f"DataError: --text: {tmp_path / 'other.txt.gz'} is damaged" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_told_all_the_same(workdir, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evaluate_run, "draw", full)
    assert evaluate_run.main([str(workdir), *ONLY_SCORES, f"--out={tmp_path / 'e'}"]) == 6
    told = capsys.readouterr()
    assert "position in the window" in told.out and "cannot be written (No space left on device)" in told.err


def test_nothing_is_replaced_that_no_evaluation_wrote(workdir, tmp_path, capsys):
    (tmp_path / "mine.json").write_text('{"a": 1}')
    before = (workdir / "config.json").read_text()
    for out in (tmp_path / "mine", workdir / "config"):
        assert evaluate_run.main([str(workdir), *ONLY_SCORES, f"--out={out}"]) == 1
        assert "is there and no evaluation; name another" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == '{"a": 1}' and (workdir / "config.json").read_text() == before
    assert evaluate_run.main([str(workdir), *ONLY_SCORES, "--out=."]) == 1


def test_a_copied_run_needs_its_corpus_for_its_held_out_part_only(workdir, tmp_path, capsys):
    (tmp_path / "other.txt").write_bytes(TEXT.tobytes())
    corpus = workdir.parent / "corpus.txt"
    corpus.rename(tmp_path / "away")
    try:
        arguments = [str(workdir), f"--text={tmp_path / 'other.txt'}", "--generate=512", "--contexts=0"]
        assert evaluate_run.main([*arguments, f"--out={tmp_path / 'e'}"]) == 0
        generation = json.loads((tmp_path / "e.json").read_text())["generation"]
        assert generation["training_bytes"] is None and "copied" not in generation["generated"]
        assert "No copies from the training text were looked for: data.path" in capsys.readouterr().out
        assert evaluate_run.main([str(workdir)]) == 1
        assert "corpus.txt" in capsys.readouterr().err
    finally:
        (tmp_path / "away").rename(corpus)


def test_the_signal_method_scores_last_positions_and_says_so(workdir, tmp_path, capsys):
    """The same run, as if its cutoff had masked signals."""
    changes = {"objective__positions": "last", "objective__next_byte_weight": 0.0}
    signals = copy_with(workdir, tmp_path / "run", curriculum__method="signal", **changes)
    (tmp_path / "other.txt").write_bytes(TEXT.tobytes())
    assert evaluate_run.main([str(signals), f"--text={tmp_path / 'other.txt'}"]) == 0
    output = capsys.readouterr().out
    assert "32 to 32" in output and "No bpb by length of context: the signal method" in output


def test_a_reader_that_has_seen_enough_is_no_error(workdir):
    """As in `... | head -1`; what was computed is written nevertheless."""
    command = [sys.executable, "-m", "fftlm_jax.evaluate", str(workdir), "--max_bytes=400", *ONLY_SCORES]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=100) == 0 and "Traceback" not in errors and "BrokenPipe" not in errors
    assert list(workdir.glob("evaluation_*_400bytes.png"))


@pytest.mark.parametrize(
    "case,arguments,code,message",
    (
        ("no run", ["{tmp}"], 1, "holds no run"),
        ("no such step", ["{run}", "--step=99"], 1, "is not best, last or one of the saved steps"),
        ("no such text", ["{run}", "--text={tmp}/none"], 1, "--text: {tmp}/none cannot be read"),
        ("short text", ["{run}", "--max_bytes=20"], 1, "20 bytes holds no window of 36"),
        ("negative cap", ["{run}", "--max_bytes=-1"], 1, "--max_bytes: must be at least 0"),
        ("negative sample", ["{run}", "--contexts=-1"], 1, "--contexts: must be at least 0"),
        ("too little to compare", ["{run}", "--generate=511"], 1, "--generate: must be 0, or at least 512, not 511"),
    ),
)
def test_bad_input_gets_one_sentence(workdir, tmp_path, capsys, case, arguments, code, message):
    filled = [a.format(run=workdir, tmp=tmp_path) for a in arguments]
    assert evaluate_run.main(filled) == code
    assert message.format(run=workdir, tmp=tmp_path) in capsys.readouterr().err


def test_a_corpus_that_changed_is_not_called_held_out(workdir, capsys):
    corpus = workdir.parent / "corpus.txt"
    before = corpus.read_bytes()
    try:
        corpus.write_bytes(before[::-1])
        assert evaluate_run.main([str(workdir)]) == 4
        assert "may have been trained on" in capsys.readouterr().err
    finally:
        corpus.write_bytes(before)
