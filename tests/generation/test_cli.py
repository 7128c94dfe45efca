"""`python -m fftlm_jax.generation`: where prompts come from, what is shown where, and one line for what is wrong."""

import functools
import io
import os
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.generation import SamplingConfig, terminal, terminal_text
from fftlm_jax.generation.sampling import DecodedBytes
from fftlm_jax.model import build
from tests.generation.made_up_run import copy_with, make_run

PROMPT = "def café(".encode()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A chunk run of which steps 7 and 8 are kept, with an average of its weights."""
    return make_run(tmp_path_factory.mktemp("generated"))


@pytest.fixture(scope="module")
def next_byte_workdir(workdir):
    """A run without a chunk head and without an average."""
    changes = {"objective__name": "next_byte", "optim__ema_decay": 0.0}
    return copy_with(workdir, workdir.parent / "next_byte", **changes)


@pytest.fixture(autouse=True, scope="module")
def models_built_once():
    """Which is half of what a command takes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in (terminal, saved_run):
            monkeypatch.setattr(module, "build", functools.cache(build))
        yield


class Terminal(io.TextIOWrapper):
    """A stdin at which somebody sits."""

    def isatty(self):
        return True


@pytest.fixture
def generate(workdir, monkeypatch, capsysbinary):
    """Runs the command; returns exit code, stdout and stderr."""

    def call(*options, folder=workdir, typed=b"", stdin=io.TextIOWrapper):
        monkeypatch.setattr(sys, "stdin", stdin(io.BytesIO(typed)))
        code = terminal.main([f"--workdir={folder}", *options])
        out, err = capsysbinary.readouterr()
        return code, out, err.decode()

    return call


@pytest.fixture
def written(generate):
    """The bytes that a command writes after its prompt `ab`, which must succeed."""

    def call(*options, **others):
        code, out, err = generate("--prompt=ab", "--raw", "--bytes=24", *options, **others)
        assert code == 0, err
        assert out.startswith(b"ab")
        return out[2:]

    return call


def test_prompts_from_argument_file_and_stdin_are_continued_alike(generate, tmp_path):
    (tmp_path / "prompt").write_bytes(PROMPT)
    sources = (
        generate("--bytes=20", f"--prompt={PROMPT.decode()}"),
        generate("--bytes=20", f"--prompt_file={tmp_path / 'prompt'}"),
        generate("--bytes=20", typed=PROMPT),
    )
    assert sources[0] == sources[1] == sources[2]
    code, out, err = sources[0]
    assert code == 0 and out.startswith(PROMPT) and len(out) > len(PROMPT) + 1
    assert generate("--bytes=20", "--prompt=def cafe(")[1][8:] != out[len(PROMPT) :], "every byte of the prompt counts"


def test_a_prompt_file_may_hold_any_bytes_and_an_argument_broken_utf8(generate, tmp_path):
    (tmp_path / "prompt").write_bytes(b"a\xff\0b")
    code, out, _ = generate("--bytes=20", "--raw", f"--prompt_file={tmp_path / 'prompt'}")
    assert code == 0 and out.startswith(b"a\xff\0b") and len(out) == 24
    code, out, _ = generate("--bytes=20", "--raw", "--prompt=a\udcffb")
    assert code == 0 and out.startswith(b"a\xffb") and len(out) == 23


def test_at_a_terminal_the_empty_prompt_is_continued_and_nothing_is_read(generate):
    assert generate("--bytes=9", typed=b"unread", stdin=Terminal) == generate("--bytes=9", "--prompt=")


def test_the_same_seed_gives_the_same_bytes_and_another_others(written):
    text = written("--seed=3")
    assert len(text) == 24 and written("--seed=3") == text != written("--seed=4")
    assert written() == written("--seed=0")


@pytest.fixture
def told(monkeypatch):
    """What the decoder is told, which writes nothing but dots; spares compilations."""
    seen = SimpleNamespace()

    def stream(params, prompts, length, sampling, **others):
        vars(seen).update(params=params, prompts=prompts, length=length, sampling=sampling, **others)
        yield DecodedBytes([b"." * length] * len(prompts), 0, 0)

    monkeypatch.setattr(terminal, "decoder_for", lambda *_: SimpleNamespace(stream=stream))
    return seen


def samples_of(out):
    """The texts behind their headings, without the newline at their ends."""
    begin, *samples = out.split(b"=== sample ")
    assert begin == b"" and [sample[:2] for sample in samples] == [b"%d\n" % n for n in range(1, len(samples) + 1)]
    return [sample[2:-1] for sample in samples]


def test_samples_are_shown_one_after_the_other(generate):
    options = ("--prompt=ab", "--bytes=24")
    code, out, _ = generate(*options, "--samples=3")
    samples = samples_of(out)
    assert code == 0 and len(set(samples)) == 3 and all(sample.startswith(b"ab") for sample in samples)
    assert samples[0] + b"\n" == generate(*options)[1], "the first is what a single one is"


@pytest.mark.parametrize("mode", terminal.MODES)
def test_stop_ends_before_the_text(written, mode):
    option = f"--mode={mode}"
    text = written(option)
    stop, other = text[9:11], text[15:18]
    assert written(option, f"--stop={os.fsdecode(stop)}") == text[: text.index(stop)] != text
    first = min(text.index(stop), text.index(other))
    assert written(option, *(f"--stop={os.fsdecode(s)}" for s in (other, stop))) == text[:first]
    assert written(option, "--stop=longer than a text of 24 bytes") == text


def test_every_sample_stops_by_itself(generate):
    def texts(*options):
        out = generate("--prompt=ab", "--bytes=24", "--samples=3", "--raw", *options)[1]
        _, *samples = (b"\n" + out).split(b"\n=== sample ")  # Each begins on a line of its own.
        return [sample[4:] for sample in samples]  # Without number, newline and prompt.

    whole = texts()
    stops = [whole[0][5:8], whole[1][9:12]]
    cut = texts(*(f"--stop={os.fsdecode(stop)}" for stop in stops))
    assert cut == [min((text.split(stop)[0] for stop in stops), key=len) for text in whole]
    assert len({len(text) for text in cut}) == 3, "each at another place, the last nowhere"


@pytest.mark.parametrize("mode", ("chunk", "speculative"))
def test_modes_write_as_many_bytes_as_asked(written, mode):
    text = written(f"--mode={mode}")
    assert len(text) == 24 == len(written(f"--mode={mode}", "--seed=1"))
    assert written(f"--mode={mode}") == text != written(f"--mode={mode}", "--seed=1")


def test_greedy_speculation_writes_what_byte_by_byte_writes(written):
    greedy = written("--temperature=0")
    assert written("--temperature=0", "--mode=speculative") == greedy == written("--temperature=0", "--seed=9")


@pytest.mark.parametrize("mode", terminal.MODES)
def test_stats_go_to_stderr_and_only_speculation_has_drafts(generate, mode):
    options = ("--prompt=ab", "--bytes=24", f"--mode={mode}")
    _, plain, quiet = generate(*options)
    code, out, err = generate(*options, "--stats")
    assert code == 0 and out == plain and "bytes/s" not in quiet
    step, stats = err.splitlines()
    assert step + "\n" == quiet and stats.startswith("24 bytes, ") and "bytes/s" in stats
    assert ("% of the drafted bytes stood" in stats) == (mode == "speculative")


def test_what_could_drive_a_terminal_is_escaped_unless_raw(generate, tmp_path):
    (tmp_path / "prompt").write_bytes(b"\x1b[2J")
    options = (f"--prompt_file={tmp_path / 'prompt'}", "--bytes=200")
    raw = generate(*options, "--raw")[1]
    shown = generate(*options)[1].decode()
    assert raw.startswith(b"\x1b[2J") and len(raw) == 204 and any(byte < 32 for byte in raw[4:])
    assert shown == terminal_text(raw) + "\n" and shown.startswith("\\x1b[2J")
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_what_the_output_cannot_encode_is_escaped_too(workdir, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert terminal.main([f"--workdir={workdir}", "--prompt=é", "--bytes=1"]) == 0
    assert out.buffer.getvalue().startswith(b"\\xe9")


@pytest.mark.parametrize("option", ((), ("--raw",)))
def test_streams_that_hold_text_only_are_read_and_written(workdir, generate, monkeypatch, option):
    """As notebooks and tests put them in the place of files; raw bytes are shown there as all others are."""
    shown = generate("--prompt=é", "--bytes=9")[1].decode()
    for name, stream in (("stdin", io.StringIO("é")), ("stdout", io.StringIO())):
        monkeypatch.setattr(sys, name, stream)
    assert terminal.main([f"--workdir={workdir}", "--bytes=9", *option]) == 0
    assert sys.stdout.getvalue().rstrip("\n") == shown.rstrip("\n")


def test_interactive_goes_on_from_every_line_until_end_of_file(generate):
    options = ("--raw", "--bytes=12", "--temperature=0")
    code, out, _ = generate(*options, "--interactive", typed=b"abc\nde\n")
    first = generate(*options, "--prompt=abc\n")[1][4:]
    text = b"abc\n" + first + b"de\n"
    second = generate(*options, typed=text)[1][len(text) :]
    assert code == 0 and len(out) == 24 and out == first + second
    assert generate(*options, "--interactive", "--prompt=ab", typed=b"c\n")[1] == first, "the text begins with a prompt"
    assert generate(*options, "--interactive", typed=b"") == (0, b"", "")


def test_turns_of_a_conversation_draw_other_numbers(generate):
    """The line is longer than what the model remembers, so that greedy turns are the same."""
    line = b"a" * 30 + b"\n"
    for options, same in (((), False), (("--temperature=0",), True)):
        code, out, _ = generate("--raw", "--bytes=12", "--interactive", *options, typed=line * 2)
        assert code == 0 and len(out) == 24 and (out[:12] == out[12:]) == same


def test_a_terminal_is_asked_for_its_lines(generate, told):
    assert generate("--interactive", "--raw", "--bytes=5", typed=b"abc\n", stdin=Terminal) == (0, b"> .....> ", "")


def test_interactive_without_any_stdin_ends_at_once(workdir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert terminal.main([f"--workdir={workdir}", "--interactive"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("options", ((), ("--interactive",)))
def test_a_stdin_that_cannot_be_read_is_named(generate, tmp_path, options):
    """Under `nohup` on a terminal it is open for writing alone."""
    with (tmp_path / "written").open("wb", buffering=0) as only_written:
        code, out, err = generate("--bytes=4", *options, stdin=lambda _: io.TextIOWrapper(unreadable(only_written)))
    assert (code, out) == (1, b"") and err.count("\n") == 1
    assert err.startswith("UsageError: standard input cannot be read (Bad file descriptor); pass --prompt")


def unreadable(file):
    """As Python opens standard input whatever it is open for."""
    return io.BufferedReader(io.FileIO(file.fileno(), "r", closefd=False))


def test_an_interrupt_ends_the_text(workdir, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Writer, "write", interrupted)
    assert terminal.main([f"--workdir={workdir}", "--prompt=a"]) == 130
    assert capsys.readouterr().out == "\n"


def equal(params, others):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, params, others)))


@pytest.mark.parametrize("which,step", (("best", 7), ("last", 8), ("7", 7), ("8", 8), (None, 7)))
def test_steps_are_chosen_by_name_and_number(generate, told, workdir, monkeypatch, which, step):
    monkeypatch.setattr(saved_run, "read_metric", lambda folder: float(folder.name))  # Lower is better.
    code, _, err = generate("--prompt=a", *([f"--step={which}"] if which else []))
    assert (code, err) == (0, f"step {step}\n")
    params = {n: saved_run.load(workdir, str(n)).params for n in (7, 8)}
    assert equal(told.params, params[step]) and not equal(params[7], params[8])


def test_the_average_of_the_weights_is_taken_on_demand(generate, told, workdir):
    raw, average = (saved_run.load(workdir, "last", averaged=averaged).params for averaged in (False, True))
    assert not equal(raw, average)
    for options, params in (((), raw), (("--ema",), average)):
        assert generate("--prompt=a", "--step=last", *options)[0] == 0 and equal(told.params, params)


def test_every_rule_of_sampling_reaches_the_decoder(generate, told):
    rules = {"temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "repetition_penalty": 1.5}
    rules |= {"repetition_window": 9, "longest_run": 3}
    options = (f"--{name}={value}" for name, value in rules.items())
    code, out, _ = generate(*options, "--ascii", "--ban=é.", "--seed=5", "--bytes=6", "--mode=chunk", "--prompt=q")
    assert (code, out) == (0, b"q......\n")
    assert told.sampling == SamplingConfig(**rules, ascii_only=True, banned="é.".encode())
    assert (told.seed, told.length, told.mode, told.prompts) == (5, 6, "chunk", [b"q"])
    assert generate("--prompt=q")[0] == 0 and told.sampling == SamplingConfig(temperature=0.8, top_p=0.95)
    assert generate("--ascii", f"--ban={ASCII.replace('a', '')}", "--prompt=q")[0] == 0, "one byte is enough to write"


@pytest.mark.parametrize(
    "case,options,message",
    (
        ("no run", ["--workdir={tmp}/none"], "--workdir: {tmp}/none holds no run; name a run directory."),
        ("a step not saved", ["--step=99"], "--step: '99' is not best, last or one of the saved steps ["),
        ("a step by no name", ["--step=newest"], "--step: 'newest' is not best, last"),
        ("no bytes", ["--bytes=0"], "--bytes: must be at least 1, not 0."),
        ("no samples", ["--samples=0"], "--samples: must be within 1 and 2**16, not 0."),
        ("samples without end", ["--samples=65537"], "--samples: must be within 1 and 2**16, not 65537."),
        ("cold", ["--temperature=-1"], "--temperature: must be a number, at least 0, not -1.0."),
        ("no number", ["--temperature=nan"], "--temperature: must be a number, at least 0, not nan."),
        ("infinitely hot", ["--temperature=inf"], "--temperature: must be a number, at least 0, not inf."),
        ("more than all", ["--top_k=257"], "--top_k: must be within 0 and 256, not 257."),
        ("nothing left", ["--top_p=0"], "--top_p: must be within 0 (exclusive) and 1, not 0.0."),
        ("nan", ["--min_p=nan"], "--min_p: must be within 0 and 1, not nan."),
        ("no penalty", ["--repetition_penalty=0"], "--repetition_penalty: must be a number greater than 0, not 0.0."),
        ("no window", ["--repetition_window=0"], "--repetition_window: must be within 1 and 2**24, not 0."),
        ("negative run", ["--longest_run=-1"], "--longest_run: must be within 0 and 2**24, not -1."),
        ("negative seed", ["--seed=-1"], "--seed: must be within 0 and 2**32 - 1, not -1."),
        ("a seed too large", ["--seed=4294967296"], "--seed: must be within 0 and 2**32 - 1, not 4294967296."),
        ("an empty stop", ["--stop=.", "--stop="], "--stop: must be a text of at least one byte, not ['.', '']."),
        ("two prompts", ["--prompt=a", "--prompt_file={tmp}/p"], "--prompt_file: there is a --prompt already;"),
        ("no such file", ["--prompt_file={tmp}/p"], "--prompt_file: {tmp}/p cannot be read (No such file"),
        ("a folder", ["--prompt_file={tmp}"], "--prompt_file: {tmp} cannot be read (Is a directory); name a file."),
        ("many turns", ["--interactive", "--samples=2"], "--samples: an interactive text has one continuation;"),
        ("all banned", ["--ascii", "--ban={ascii}"], "--ban: too few bytes are left to write; ban fewer."),
        ("one left", ["--ascii", "--ban={rest}", "--longest_run=1"], "--ban: too few bytes are left to write;"),
        ("no average", ["--workdir={next_byte}", "--ema"], "--ema: {next_byte} kept no average of its weights"),
        ("no head", ["--workdir={next_byte}", "--mode=chunk"], "--mode: 'chunk' needs a chunk head, and this run"),
        ("no drafts", ["--workdir={next_byte}", "--mode=speculative"], "--mode: 'speculative' needs a chunk head"),
    ),
)  # fmt: skip
def test_what_cannot_be_done_gets_one_line(generate, next_byte_workdir, tmp_path, case, options, message):
    texts = {"tmp": tmp_path, "next_byte": next_byte_workdir, "ascii": ASCII, "rest": ASCII.replace("a", "")}
    code, out, err = generate(*(option.format(**texts) for option in options))
    assert (code, out) == (1, b"")
    assert err.startswith(f"UsageError: {message.format(**texts)}")
    assert err.count("\n") == 1 and err.endswith("\n")


ASCII = "\t\n" + "".join(map(chr, range(32, 127)))


def test_a_next_byte_run_is_continued_byte_by_byte(written, next_byte_workdir):
    assert len(written(folder=next_byte_workdir)) == 24
