"""Standard streams as users have them, and signals: no message, no reader and no signal costs a run its step."""

import contextlib
import errno
import faulthandler
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fftlm_jax.checkpoints.saved_step import manifest_fault, step_numbers
from fftlm_jax.cli import main as fftlm
from fftlm_jax.recording.console import Console
from fftlm_jax.runtime.errors import CheckpointError, Interrupted, InUseError, NonFiniteError, SaveError, UsageError
from fftlm_jax.runtime.process import Interrupts, request_stop, run_command
from fftlm_jax.runtime.streams import is_terminal, prepare_streams, print_error, print_line, read_bytes
from fftlm_jax.runtime.untrusted import printable
from fftlm_jax.training import run
from tests.faults.fuzzing import fuzz
from tests.faults.runs import assert_equal_runs, short_values
from tests.tiny import ROOT, main_command, start_main, write_config

ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-8", "utf-16")
MARKS = "\ufeff\ufffe"  # At the beginning of UTF-16 they are no text.
LINES = st.text(
    st.one_of(
        st.characters(max_codepoint=127),
        st.characters(exclude_characters=MARKS),
        st.sampled_from("é漢🚀€\ud800\udfff\x81"),
    ),
    max_size=12,
)


class Refusing(io.StringIO):
    """Takes so many lines, and raises an error for all that comes later."""

    def __init__(self, error, lines=0):
        super().__init__()
        self.error, self.left = error, lines

    def write(self, text):
        if self.left <= 0:
            raise self.error
        self.left -= text.count("\n")
        return super().write(text)


class Seen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def broken_pipe():
    return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def stream_of(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def closed():
    stream = stream_of("utf-8")
    stream.close()
    return stream


def has(encoding, character):
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def expected(line, encoding):
    """Every character that the encoding has, in its place; escapes of the others."""
    return "".join(c if has(encoding, c) else c.encode("ascii", "backslashreplace").decode() for c in line)


@fuzz
@given(LINES, st.sampled_from(ENCODINGS))
@example("🚀 CUTOFF RAISED: 4 -> 8", "ascii")
@example("half a pair: \ud800", "utf-16")
def test_any_line_is_printed_to_a_stream_of_any_encoding(line, encoding):
    stream = stream_of(encoding)
    print_line(line, stream)
    assert stream.buffer.getvalue().decode(encoding) == f"{expected(line, encoding)}\n", "flushed, too"
    print_line("next", stream)
    assert stream.buffer.getvalue().decode(encoding) == f"{expected(line, encoding)}\nnext\n"


def test_nothing_is_printed_where_there_is_no_stream(monkeypatch):
    for stream in (None, closed()):
        print_line("lost", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        print_error("lost")


@pytest.mark.parametrize("error", (broken_pipe(), full()))
def test_a_line_that_cannot_be_written_is_an_error_to_its_writer_and_none_on_standard_error(monkeypatch, error):
    with pytest.raises(type(error)):
        print_line("lost", Refusing(error))
    monkeypatch.setattr(sys, "stderr", Refusing(error))
    print_error("lost")


def logged(folder, lines):
    """What a console logs of some lines, without the times."""
    (folder / "run.log").unlink(missing_ok=True)
    console = Console(folder / "run.log")
    for line in lines:
        console.say(line)
    console.close()
    return re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", (folder / "run.log").read_bytes().decode())


@fuzz
@given(LINES, st.sampled_from(ENCODINGS))
@example("🚀 CUTOFF RAISED: 4 -> 8", "ascii")
def test_whatever_the_encoding_of_standard_output_a_run_says_its_line_there_and_in_its_log(tmp_path, line, encoding):
    stream = stream_of(encoding)
    with contextlib.redirect_stdout(stream):
        assert logged(tmp_path, [line]) == f"{printable(line)}\n"
    assert stream.buffer.getvalue().decode(encoding) == f"{expected(printable(line), encoding)}\n"


@pytest.mark.parametrize("stream", (None, closed(), Refusing(full()), Refusing(full(), lines=1)))
def test_without_standard_output_or_with_a_full_disk_behind_it_a_run_says_all_in_its_log(tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    assert logged(tmp_path, ["first", "🚀 second"]) == "first\n🚀 second\n"
    assert not isinstance(stream, Refusing) or stream.getvalue() in ("", "first\n")


@pytest.mark.parametrize("stream", (None, closed(), object(), io.StringIO()))
def test_without_a_terminal_there_is_no_progress_bar(monkeypatch, capsys, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console()
    console.start_progress(3, 10)
    console.advance(2.5)
    console.say("a line")
    console.close()
    assert not is_terminal(stream) and capsys.readouterr().out == "a line\n"
    assert not isinstance(stream, io.StringIO) or stream.getvalue() == ""


def test_on_a_terminal_there_is_one(monkeypatch):
    """So that the test above can fail."""
    monkeypatch.setattr(sys, "stderr", Seen())
    console = Console()
    console.start_progress(3, 10)
    console.close()
    assert is_terminal(sys.stderr) and "3/10" in sys.stderr.getvalue()


def test_a_reader_that_left_asks_the_runs_of_this_process_to_stop(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", Refusing(broken_pipe(), lines=1))
    with Interrupts() as outer, Interrupts() as inner:
        assert logged(tmp_path, ["one"]) == "one\n" and outer.requested is inner.requested is None
        assert logged(tmp_path, ["two", "three"]) == "two\nthree\n"
        assert outer.requested == inner.requested == signal.SIGPIPE
    with pytest.raises(BrokenPipeError):
        Console().say("nobody runs here, and so the command ends")


def test_a_signal_that_came_before_is_not_forgotten_for_a_reader_that_left(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Refusing(broken_pipe()))
    with Interrupts() as interrupts:
        interrupts.requested = signal.SIGTERM
        Console().say("lost")
    assert interrupts.requested == signal.SIGTERM


@pytest.fixture
def outcome(monkeypatch, capsys):
    """Runs a command with these standard streams; returns its exit code and what it said on standard error."""

    def call(action, **streams):
        with monkeypatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            code = run_command(action)
        return code, capsys.readouterr().err

    return call


def fails(error):
    def action():
        raise error

    return action


def test_exit_codes_of_commands(outcome):
    for result, code in ((None, 0), (0, 0), (4, 4)):
        assert outcome(lambda: result) == (code, "")


def test_ctrl_c_ends_a_command_without_a_word(outcome, monkeypatch):
    assert outcome(fails(KeyboardInterrupt())) == (130, "")
    monkeypatch.setattr("importlib.import_module", lambda name: fails(KeyboardInterrupt())())
    assert fftlm(["doctor", "--help"]) == 130


def test_a_reader_that_left_is_no_error_of_a_command_and_gets_nothing_more(outcome):
    """A pipe as `head` leaves it. The interpreter flushes the stream when it ends, which must not complain."""
    assert outcome(fails(broken_pipe())) == (0, "")
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:
        assert outcome(lambda: print("too late", flush=True), stdout=stream) == (0, "")
        print("later still", file=stream, flush=True)


@pytest.mark.parametrize("number", (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
def test_standard_output_that_takes_nothing_is_said_in_one_line(outcome, number):
    code, told = outcome(fails(OSError(number, os.strerror(number))))
    assert code == 1 and told.startswith("UsageError: standard output cannot be written (") and told.count("\n") == 1
    assert os.strerror(number) in told


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_output_into_a_full_disk_fails_although_it_was_buffered(outcome):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        code, told = outcome(lambda: print("a number that somebody counts on"), stdout=stream)
        assert code == 1 and "standard output cannot be written (No space left on device)" in told
        print("nothing complains later", file=stream, flush=True)


@pytest.mark.parametrize(
    "error",
    (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a_file"),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a_file"),
        OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)),
        OSError("of no number"),
        ValueError("a mistake in the program"),
    ),
)
def test_no_other_error_is_taken_for_one_of_standard_output(error):
    with pytest.raises(type(error)) as raised:
        run_command(fails(error))
    assert raised.value is error


RUN_ERRORS = (
    *(UsageError("why"), NonFiniteError("why"), CheckpointError("why"), InUseError("why"), SaveError("why")),
    *(Interrupted("why", number) for number in (signal.SIGINT, signal.SIGPIPE)),
)


STREAMS = {
    "none": lambda: None,
    "closed": closed,
    "full": lambda: Refusing(full()),
    "unread": lambda: Refusing(broken_pipe()),
    "ascii": lambda: stream_of("ascii"),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_the_exit_code_of_an_error_does_not_depend_on_where_its_sentence_can_be_said(outcome, make):
    for error in RUN_ERRORS:
        assert outcome(fails(error)) == (error.exit_code, f"{type(error).__name__}: why\n")
        assert outcome(fails(error), stderr=make()) == (error.exit_code, "")
        assert outcome(fails(error), stdout=make()) == (error.exit_code, f"{type(error).__name__}: why\n")


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_command_that_says_nothing_succeeds_whatever_the_streams_are(outcome, make):
    for name in ("stdin", "stdout", "stderr"):
        assert outcome(lambda: 0, **{name: make()}) == (0, "")


class Shim:
    """What notebooks and loggers put in the place of standard output: no file, but something to write to."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_standard_output_need_not_be_a_file(outcome):
    shim = Shim()
    assert outcome(lambda: print("a number"), stdout=shim) == (0, "") and shim.text == "a number\n"


def test_prepared_streams_take_every_character_and_those_that_were_not_there_take_all(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    prepare_streams()
    print("🚀 \ud800")
    print("🚀 \ud800", file=sys.stderr)
    assert sys.stdin.read() == ""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream_of("ascii"))
        monkeypatch.setattr(sys, "stdin", io.StringIO())
    prepare_streams()
    for stream in (sys.stdout, sys.stderr):
        print("🚀", file=stream, flush=True)
        assert stream.buffer.getvalue() == b"\\U0001f680\n"


COMMAND_THAT_SAYS_MUCH = """
import sys
from fftlm_jax.runtime.process import run_command
sys.exit(run_command(lambda: print("x" * 300_000, end="")))
"""


@pytest.mark.parametrize("unbuffered", ("", "1"))
def test_a_pipe_that_does_not_block_gets_all_that_is_said_however_slowly_it_is_read(unbuffered):
    """Buffered, Python raises an error where such a pipe is full; unbuffered, it drops the rest and says nothing."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", COMMAND_THAT_SAYS_MUCH]
    process = subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, env=environment)
    os.close(write)
    with open(read, "rb") as reader:
        assert reader.read(1) == b"x", "from now on it writes faster than this process reads"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        said = reader.read()
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0 and len(said) == 299_999


def test_input_that_does_not_block_is_waited_for():
    """Otherwise Python reads nothing from it, and calls that None."""
    child = "import sys; from fftlm_jax.runtime.streams import prepare_streams as p, read_bytes as r\np()\n"
    read, write = os.pipe()
    os.set_blocking(read, False)
    command = [sys.executable, "-c", f"{child}print('ready', flush=True)\nprint(r(sys.stdin))"]
    process = subprocess.Popen(command, stdin=read, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(read)
    assert process.stdout.readline() == "ready\n"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    with contextlib.suppress(BrokenPipeError), open(write, "wb") as writer:
        writer.write(b"late")
    assert process.communicate(timeout=60)[0] == "b'late'\n"


@pytest.mark.parametrize("line", (True, False))
def test_input_is_read_from_files_and_from_what_stands_for_one(line):
    first, rest = "é\n".encode(), "" if line else "x"
    for stream in (io.TextIOWrapper(io.BytesIO("é\nx".encode())), io.StringIO("é\nx")):
        assert read_bytes(stream, line=line) == first + rest.encode()
    assert read_bytes(None, line=line) == read_bytes(closed(), line=line) == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
@pytest.mark.parametrize("arguments", (["--help"], ["doctor", "--help"], ["train", "--help"]), ids=" ".join)
def test_help_that_cannot_be_written_is_said_in_one_line(arguments):
    command = [sys.executable, "-c", "import sys; from fftlm_jax.cli import main; sys.exit(main())", *arguments]
    with open("/dev/full", "w") as full_disk:
        done = subprocess.run(command, stdout=full_disk, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("UsageError: standard output cannot be written (No space left on device)")


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


@contextlib.contextmanager
def handled(number, handler):
    """A signal that the program around a run handles so."""
    assert threading.current_thread() is threading.main_thread(), "signals are handled there alone"
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize("name", SIGNALS)
def test_the_first_signal_asks_to_stop_and_the_second_has_its_usual_effect(name):
    number = getattr(signal, name)
    with handled(number, signal.SIG_DFL):
        with Interrupts() as interrupts:
            assert callable(signal.getsignal(number)), "or the next line ends the tests"
            os.kill(os.getpid(), number)
            assert interrupts.requested == number
            assert {signal.getsignal(getattr(signal, other)) for other in (name, *SIGNALS[:2])} == {signal.SIG_DFL}
        assert signal.getsignal(number) == signal.SIG_DFL
    assert not request_stop(number), "nobody is left to be asked"


@pytest.mark.parametrize("name", SIGNALS)
def test_the_handler_from_before_is_back_behind_a_run_whether_a_signal_came_or_not(name):
    number, seen = getattr(signal, name), []
    with handled(number, signal.SIG_DFL):
        with Interrupts():
            assert signal.getsignal(number) != signal.SIG_DFL
        assert signal.getsignal(number) == signal.SIG_DFL
        with pytest.raises(ZeroDivisionError), Interrupts():
            raise ZeroDivisionError
        assert signal.getsignal(number) == signal.SIG_DFL
    with handled(number, lambda *_: seen.append(name)):
        with Interrupts() as interrupts:
            os.kill(os.getpid(), number)
        assert (interrupts.requested, seen) == ((number, []) if name in SIGNALS[:2] else (None, [name]))
        os.kill(os.getpid(), number)
        assert seen.pop() == name


@pytest.mark.parametrize("name", SIGNALS[2:])
def test_a_signal_that_is_ignored_stays_ignored(name):
    """SIGHUP is, under `nohup`."""
    number = getattr(signal, name)
    with handled(number, signal.SIG_IGN):
        with Interrupts() as interrupts:
            assert signal.getsignal(number) == signal.SIG_IGN
            os.kill(os.getpid(), number)
            assert interrupts.requested is None
        assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of handlers that are not Python's")
@pytest.mark.parametrize("name", SIGNALS[2:])
def test_a_signal_for_which_native_code_has_a_handler_stays_its(tmp_path, name):
    number = getattr(signal, name)
    with (tmp_path / "stacks").open("w") as stacks:
        faulthandler.register(number, stacks, all_threads=False)
        try:
            with Interrupts() as interrupts:
                os.kill(os.getpid(), number)
            assert interrupts.requested is None
            os.kill(os.getpid(), number)
        finally:
            faulthandler.unregister(number)
    assert (tmp_path / "stacks").read_text().count("(most recent call first)") == 2


def test_a_handler_that_python_cannot_put_back_ends_no_run(monkeypatch):
    """A program in C that embeds Python may handle SIGTERM by itself."""
    set_handler = signal.signal

    def unknown_before(number, handler):
        previous = set_handler(number, handler)
        return None if number == signal.SIGTERM else previous

    with handled(signal.SIGTERM, signal.SIG_DFL):
        with monkeypatch.context() as patch:
            patch.setattr(signal, "signal", unknown_before)
            with Interrupts():
                pass
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_in_another_thread_takes_no_signals_and_hears_of_a_reader_that_left():
    found = []

    def work():
        before = [signal.getsignal(getattr(signal, name)) for name in SIGNALS]
        with Interrupts() as interrupts:
            assert [signal.getsignal(getattr(signal, name)) for name in SIGNALS] == before
            found.extend([request_stop(signal.SIGPIPE), interrupts.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, signal.SIGPIPE]


@pytest.mark.parametrize("lines", (0, 12))
def test_a_run_whose_reader_left_saves_its_step_and_goes_on_later(reference, tmp_path, monkeypatch, lines):
    """In its first line, and in the midst of training."""
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as error:
        patch.setattr(sys, "stdout", Refusing(broken_pipe(), lines))
        run(short_values(), workdir)
    assert error.value.exit_code == 141
    steps = step_numbers(workdir / "checkpoints")
    if lines:
        assert f"stopped by SIGPIPE: step {steps[-1]} is saved" in str(error.value) and 0 < steps[-1] < 20
        assert len((workdir / "run.log").read_text().splitlines()) > lines, "the log has what nobody read"
    else:
        assert "stopped before the first step" in str(error.value) and steps == []
    run(short_values(), workdir)
    assert_equal_runs(workdir, reference)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "short_run.py", "tests.faults.runs.short_values")


def test_a_process_that_was_started_with_all_streams_closed_trains_as_any_other(config, reference, tmp_path):
    """No file of the run gets the number of a stream, and nothing is written into it that was meant for one."""
    command = main_command(config, f"--workdir={tmp_path / 'run'}")
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *command],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert_equal_runs(tmp_path / "run", reference)
    assert "finished 20 steps" in (tmp_path / "run" / "run.log").read_text()


def test_the_warning_of_a_scheduler_has_the_step_saved(config, tmp_path):
    """SIGUSR1 to a process of its own, whose run is too long to end before the signal comes."""
    process = start_main(config, "--config.train.epochs=5000", f"--workdir={tmp_path / 'run'}")
    wait_for_line(process, tmp_path / "run" / "run.log", "step 4/4 loss=")
    process.send_signal(signal.SIGUSR1)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 138, told
    newest = step_numbers(tmp_path / "run" / "checkpoints")[-1]
    assert f"stopped by SIGUSR1: step {newest} is saved; run the same command to go on from there" in told
    assert manifest_fault(tmp_path / "run" / "checkpoints" / str(newest)) is None and "Traceback" not in told


def wait_for_line(process, log, text):
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.002)
    raise AssertionError(f"it never said {text!r}: {process.communicate()}")
