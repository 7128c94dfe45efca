"""Every wrong command line ends in one line with exit code 1, before anything is compiled, read or written."""

import re
import subprocess
import sys

import pytest

from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.training import run_parts
from fftlm_jax.training.compiler import StepCompiler
from tests.tiny import ROOT, main_here, run_main

QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs main in this process up to where work would begin; returns exit code and stderr."""

    def began(*_, **__):
        raise AssertionError("work began")

    monkeypatch.setattr(RunDirectory, "acquire", began)
    monkeypatch.setattr(StepCompiler, "ahead", began)

    def call(*arguments, reads_data=False):
        with monkeypatch.context() as patch:
            if not reads_data:
                patch.setattr(run_parts, "load_run_corpus", began)
                patch.setattr(run_parts, "build_run", began)
            code = main_here(f"--workdir={tmp_path / 'run'}", *arguments)
        out, err = capsys.readouterr()
        assert out == "" and list(tmp_path.iterdir()) == []
        return code, err

    return call


KEYS = "--config.model."


@pytest.mark.parametrize(
    "case,arguments,message",
    (
        ("no layers", [f"{KEYS}n_layers=0"], "config.model.n_layers: must be at least 1, not 0."),
        ("negative", [f"{KEYS}d_model=-1"], "config.model.d_model: must be at least 1, not -1."),
        ("infinite", ["--config.lr.base=inf"], "config.lr.base: must be finite, not inf."),
        ("minus infinite", ["--config.lr.base=-inf"], "config.lr.base: must be finite, not -inf."),
        ("nan", ["--config.lr.base=nan"], "config.lr.base: must be finite, not nan."),
        ("a clip of nan", ["--config.optim.clip=nan"], "config.optim.clip: must be finite, not nan."),
        ("no rate", ["--config.lr.base=0"], "config.lr.base: must be greater than 0, not 0.0."),
        (
            "a cutoff beyond the window",
            ["--config.curriculum.ladder=(4,999)"],
            "config.curriculum.ladder: 999 bins lie outside 1..129, the bins of a window of 256 bytes",
        ),
        (
            "a first cutoff beyond the window",
            ["--config.curriculum.initial=130"],
            "config.curriculum.initial: 130 bins lie outside 1..129",
        ),
        ("a typo in a value", ["--config.optim.name=adamv"], "must be one of adamw, muon (did you mean 'adamw'?)"),
        ("too many layers", [f"{KEYS}n_layers=99999999"], "config.model.n_layers: must be at most 4096"),
        ("more digits than a float has", [f"{KEYS}ffn_mult={10**40}"], "config.model.ffn_mult: must be at most 1024"),
        ("windows without end", [f"{KEYS}seq_len=1099511627776"], "config.model.seq_len: must be at most 1048576"),
        ("a batch without end", ["--config.train.batch_size=16777216"], "at once; lower it."),
        ("steps without end", ["--config.train.epochs=2000000000"], "are more than 2147483647 steps; lower it."),
        ("an extra argument", ["resume"], "UsageError: unexpected argument 'resume'"),
        ("a key without dashes", ["lr=3"], "UsageError: unexpected argument 'lr=3'"),
    ),
)  # fmt: skip
def test_refusals(command, case, arguments, message):
    code, err = command(QUICKSTART, *arguments)
    assert code == 1 and message in err and err.count("\n") == 1, err
    assert err.startswith(("ConfigError: ", "UsageError: "))


@pytest.mark.parametrize(
    "case,arguments,message",
    (
        ("no config", [], "UsageError: --config is missing"),
        ("an unknown key", [QUICKSTART, "--config.model.d_modle=3"], "no such key: .*[Dd]id you mean.*d_model"),
        ("an unknown section", [QUICKSTART, "--config.modle.d_model=3"], "Did you mean.*model"),
        ("1e3 for a whole number", [QUICKSTART, "--config.train.epochs=1e3"], "UsageError: .*1e3"),
        ("and for another", [QUICKSTART, f"{KEYS}d_model=1e3"], "UsageError: .*d_model"),
        ("a text for a number", [QUICKSTART, "--config.lr.base=fast"], "UsageError: .*fast"),
        ("a section by a dict", [QUICKSTART, "--config.model={'d_model': 1}"], "config.model: lacks .* never a whole"),
        ("a section by a number", [QUICKSTART, "--config.model=3"], "config.model|UsageError"),
        ("a section by a word", [QUICKSTART, "--config.model=foo"], "malformed|model"),
        ("an unknown flag", [QUICKSTART, "--wrokdir=x"], "UsageError: .*wrokdir"),
        ("no such config", ["--config=configs/none.py"], "the config file configs/none.py does not exist"),
        ("control characters", [QUICKSTART, "--config.optim.name=\x1b[2J"], r"not '\\x1b\[2J'"),
    ),
)
def test_refusals_of_the_command_itself(command, case, arguments, message):
    code, err = command(*arguments)
    assert code == 1 and re.search(message, err) and err.count("\n") == 1 and "\x1b" not in err, err


def test_all_faults_are_told_at_once(command):
    code, err = command(QUICKSTART, "--config.lr.base=nan", f"{KEYS}n_layers=0", f"{KEYS}conv_heads=7")
    assert code == 1 and err.count("\n") == 2 and "lr.base" in err and "n_layers" in err, err
    code, err = command(QUICKSTART, "--config.lr.base=nan", "--config.seed=-1")
    assert code == 1 and re.search(r"config.seed[\s\S]*config.lr.base", err) and err.count("\n") <= 4, err


def test_missing_data_are_named(command):
    code, err = command(QUICKSTART, "--config.data.path=no/such/file", reads_data=True)
    assert code == 1 and "no/such/file does not exist" in err and err.count("\n") == 1, err


def test_a_process_of_its_own_says_the_same(tmp_path):
    arguments = (QUICKSTART, "--config.curriculum.ladder=(4,999)", f"{KEYS}n_layers=0")
    done = run_main(*arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1 and "n_layers: must be at least 1" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == "" and not (tmp_path / "run").exists()


def without_jax(*arguments):
    """Runs `python main.py` in a process of its own in which no import of jax succeeds."""
    code = "import runpy, sys; sys.modules['jax'] = None; runpy.run_path('main.py', run_name='__main__')"
    command = [sys.executable, "-c", code, QUICKSTART, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    "text,message",
    (
        ('{"task": true}', "NameError: name 'true' is not defined"),
        ("def get_config():\n  return 1\n   return 2", "IndentationError: unexpected indent"),
        ("def get_config():\n  return 1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_known", "No module named 'nothing_known'"),
        (
            "def get_config():\n  return int('x')",
            "ValueError: invalid literal for int() with base 10: 'x' ({file}, line 2)",
        ),
        (
            "def get_config():\n  return open('/no')",
            "FileNotFoundError: [Errno 2] No such file or directory: '/no' ({file}",
        ),
        ("x = 1", "has no attribute 'get_config' ({file})"),
        ("get_config = 1", "TypeError: 'int' object is not callable ({file})"),
        ("def get_config(size): pass", "missing 1 required positional argument: 'size' ({file})"),
        ("def get_config(): pass", "get_config() in {file} returns None; return a ConfigDict, as configs/aligned.py."),
        ("def get_config(): return 3", "get_config() in {file} returns 3; return a ConfigDict"),
        (
            "def get_config(): return [{'seed': 1}]",
            "get_config() in {file} returns [{{'seed': 1}}]; return a ConfigDict",
        ),
    ),
)
@pytest.mark.parametrize("overrides", ((), ("--config.seed=3",)))
def test_a_config_file_that_is_no_python_or_no_config_is_told_by_its_place(
    tmp_path, capsys, monkeypatch, text, message, overrides
):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # That of another file.
    file = tmp_path / "bad.py"
    file.write_text(text)
    assert main_here(f"--config={file}", f"--workdir={tmp_path / 'run'}", *overrides) == 1
    told = capsys.readouterr().err
    assert message.format(file=file) in told and "Traceback" not in told
    assert told.startswith("UsageError: ") and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_config_may_be_a_plain_dict(tmp_path, capsys):
    (tmp_path / "plain.py").write_text("from configs import tiny\nget_config = lambda: tiny.get_config().to_dict()\n")
    assert main_here(f"--config={tmp_path / 'plain.py'}", "--config.model.d_model=-1", "--dry_run") == 1
    assert capsys.readouterr().err == "ConfigError: config.model.d_model: must be at least 1, not -1.\n"
    (tmp_path / "plain.py").write_text("get_config = lambda: {'seed': 1}\n")
    assert main_here(f"--config={tmp_path / 'plain.py'}", "--dry_run") == 1
    assert "config.root: lacks task" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument,message",
    (
        ("--config.lr.base=nan", "ConfigError: config.lr.base: must be finite, not nan."),
        ("--config.lr.bas=1", "UsageError: no such key: .*Did you mean.*base"),
    ),
)
def test_a_typing_error_is_refused_before_jax_is_imported(argument, message):
    done = without_jax(argument)
    assert done.returncode == 1 and re.search(message, done.stderr) and done.stdout == "", done.stderr
    assert "Traceback" not in done.stderr


def test_without_one_jax_is_imported():
    """So that the test above can fail."""
    assert "import of jax halted" in without_jax("--dry_run").stderr
