"""What a model wrote, or a stranger's file says, cannot drive the terminal that shows it."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.verification import main as verify
from fftlm_jax.generation import terminal_text
from fftlm_jax.recording.console import Console
from fftlm_jax.recording.metrics import read_samples
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.process import run_command
from fftlm_jax.runtime.untrusted import printable
from fftlm_jax.training import run
from fftlm_jax.training.recorder import Recorder
from tests.faults.fuzzing import fuzz
from tests.faults.runs import short_values
from tests.tiny import tiny

ATTACKS = {
    "clears the screen": b"\x1b[2J",
    "sets the title": b"\x1b]0;title\x07",
    "C1 as bytes": b"\x9b31m\x90",
    "C1 as UTF-8": "\u009b31m\u0080\u009f".encode(),
    "turns the direction": "\u202aa\u202b\u202c\u202d\u202e".encode(),
    "isolates a direction": "\u2066a\u2067\u2068\u2069".encode(),
    "writes over the line": b"safe\rbad",
    "deletes": b"safe\b\b\x7f",
    "NUL, tab and form feed": b"\x00\t\x0c\x0b",
    "line separators": "\u2028\u2029\u0085".encode(),
    "hides": "\u200b\u200e\u200f\ufeff\u2060\U000e0041".encode(),
    "broken UTF-8": b"\xff\xc0\x80\xed\xa0\x80",
}


def is_harmless(text):
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("attack", ATTACKS)
def test_bytes_are_shown_as_escapes(attack):
    shown = terminal_text(b"begin " + ATTACKS[attack] + b" end\n")
    assert is_harmless(shown) and shown.startswith("begin ") and shown.endswith(" end\n") and "\\" in shown


def test_every_character_that_could_do_harm():
    harmful = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x61C]
    for code in harmful:
        assert chr(code) not in printable(f"a{chr(code)}b") or chr(code) == "\n", hex(code)
    assert printable("é 漢 🚀\n± → x²") == "é 漢 🚀\n± → x²"


@fuzz
@given(st.text(alphabet=st.characters(codec=None), max_size=20))
def test_any_text_becomes_harmless_and_can_be_encoded(text):
    assert is_harmless(printable(text)) and printable(text).encode() is not None
    assert printable(printable(text)) == printable(text)


@pytest.fixture
def recorder(tmp_path):
    made = Recorder(tiny(sample__prompt="def\x1b "), RunDirectory(tmp_path), (0, 0), 0)
    yield made
    made.close()


def test_samples_are_written_harmlessly(recorder, tmp_path, capsys):
    """In samples.txt and on the console; TensorBoard is given none."""
    texts = []
    recorder.log._tensorboard = SimpleNamespace(
        scalar=lambda *_: None, text=lambda *a: texts.append(a), flush=lambda: None, close=lambda: None
    )
    sample = b" | ".join(ATTACKS.values()) + b"\n\xff end"
    scores = {"bpb": 2.5, "loss": 1.5, "bpb_by_word_place": {}}
    recorder.evaluated(7, scores, 4, 1.0, sample)
    content = (tmp_path / "samples.txt").read_bytes().decode()
    assert is_harmless(content) and is_harmless(capsys.readouterr().out) and texts == []
    ((step, text),) = read_samples(tmp_path / "samples.txt")
    assert step == 7 and text.startswith("def\\x1b \\x1b[2J | ") and text.endswith("\n\\xff end")


def test_the_console_and_its_log_are_harmless(tmp_path, capsys):
    console = Console(tmp_path / "run.log")
    console.say("config changed: a\x1b]0;x\x07 \u202e \r")
    console.close()
    assert capsys.readouterr().out == "config changed: a\\x1b]0;x\\x07 \\u202e \\r\n"
    assert is_harmless((tmp_path / "run.log").read_text())


def test_errors_are_harmless(tmp_path, capsys):
    def fail():
        raise UsageError("no such thing: \x1b[2J\u202e\ud800")

    assert run_command(fail) == 1
    assert capsys.readouterr().err == "UsageError: no such thing: \\x1b[2J\\u202e\\ud800\n"
    step = tmp_path / "checkpoints" / "3"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text(json.dumps({"files": {"\x1b[2J\n": {"bytes": 1, "sha256": ""}}}) + "\n")
    assert verify([str(tmp_path)]) == 4
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and is_harmless(out) and "\\x1b[2J" in out


def test_a_prompt_may_hold_bytes_that_are_no_text(tmp_path):
    """As a shell passes them, in place of characters of an encoding that this process does not have."""
    run(short_values(sample__prompt="caf\udce9 ", sample__bytes=4, train__epochs=1, eval__every=4), tmp_path / "run")
    assert "caf\\udce9 " in (tmp_path / "run" / "samples.txt").read_text()
