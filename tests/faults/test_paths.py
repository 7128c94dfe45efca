"""Paths as users write them, wherever one is given: `~` is their home, and a URL is refused before anything is written.

No folder is ever made that is called `~` or `gs:`.
"""

import importlib
import json
import os
import pwd
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fftlm_jax import cli
from fftlm_jax.checkpoints import saved_run
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.config.reading import read_config
from fftlm_jax.data.corpus import load_run_corpus
from fftlm_jax.data.unpacked import cache_folder
from fftlm_jax.raft.lr_yaml import from_yaml
from fftlm_jax.raft.raft_parts import with_yaml_text
from fftlm_jax.runtime import compile_cache
from fftlm_jax.runtime.errors import DataError, UsageError
from fftlm_jax.runtime.paths import local_path, matches, user_cache
from fftlm_jax.training import loop, run
from tests.faults.fuzzing import fuzz
from tests.faults.runs import short_values
from tests.generation.made_up_run import make_run
from tests.raft.raft_run import raft_values
from tests.tiny import ROOT, main_here, write_words

QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"
RAFT = f"--config={ROOT / 'configs' / 'raft.py'}"
URL = "gs://bucket/folder"

NAMES = st.text(st.sampled_from("abcXYZ019 .,;-_+=@#~$%&!'\"()[]{}*?\\\té漢🚀\udce9"), min_size=1, max_size=8)
ORDINARY = st.builds(
    lambda before, names, after: before + "/".join(names) + after,
    st.sampled_from(("", "", "/", "./", "../", "//")),
    st.lists(NAMES, min_size=1, max_size=4),
    st.sampled_from(("", "", "/", "//", "/.")),
).filter(lambda path: not path.startswith("~"))


@fuzz
@given(ORDINARY)
@example("a folder/with spaces, and a comma/")
@example("C:/folder")
@example("c:\\folder")
@example("a:b")
@example("run:3/checkpoints")
@example("a~/~/b")
def test_an_ordinary_path_is_taken_as_it_is(text):
    assert local_path(text, "--workdir") == local_path(Path(text), "--workdir") == Path(text)
    assert local_path(f"./gs:/{text}", "--workdir") == Path(f"./gs:/{text}"), "a folder that is really called so"


@fuzz
@given(ORDINARY)
@example("run")
def test_a_home_folder_is_put_in_the_place_of_its_sign(text):
    inner = text.lstrip("/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "/a home/of é")
        assert local_path("~", "--workdir") == local_path("~/", "--workdir") == Path("/a home/of é")
        assert local_path(f"~/{inner}", "--workdir") == Path("/a home/of é") / inner


def test_a_home_folder_of_somebody_else_is_known_too():
    me = pwd.getpwuid(os.getuid())
    assert local_path(f"~{me.pw_name}/run", "--workdir") == Path(me.pw_dir) / "run"


def refusal(text, setting="--workdir"):
    """The sentence with which a path is refused."""
    with pytest.raises(UsageError) as error:
        local_path(text, setting)
    told = str(error.value)
    assert told.startswith(f"{setting}: ") and told.endswith(".") and "\n" not in told and told.isprintable()
    return told


def test_a_home_folder_that_nobody_has_is_refused(monkeypatch):
    assert "the home folder in '~no_such_user_here/run' is not known" in refusal("~no_such_user_here/run")

    def unknown(*_):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for text in ("~", "~/run"):
        assert "is not known; write the path in full" in refusal(text, "config.data.path")


@settings(fuzz, max_examples=60)
@given(st.from_regex(r"[A-Za-z][A-Za-z0-9+.-]+", fullmatch=True), st.sampled_from(("/", "//", "///")), ORDINARY)
@example("gs", "//", "bucket/run")
@example("s3", "//", "bucket/run")
@example("https", "//", "example.com/run?x=1")
@example("file", "///", "tmp/run")
@example("FILE", "/", "tmp/run")
@example("hdfs", "//", "name:9000/run")
def test_a_url_of_any_scheme_is_refused_by_the_name_of_its_setting(scheme, slashes, rest):
    for setting in ("--out", "init.checkpoint"):
        assert "is a URL, not a local path" in refusal(f"{scheme}:{slashes}{rest}", setting)
    assert "is a URL" in refusal(Path(f"{scheme}:{slashes}{rest}")), "pathlib leaves one of its slashes"


@pytest.mark.parametrize("name", ("x" * 256, "ü" * 128, "def main(" * 40), ids=len)
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(UsageError, match="RUN: .* is longer than the 255 bytes of a name"):
        local_path(f"runs/{name}/a", "RUN")
    assert local_path("ü" * 127, "RUN") == Path("ü" * 127)


@fuzz
@given(ORDINARY, ORDINARY)
def test_a_null_character_or_nothing_is_refused(before, after):
    assert "holds a null character" in refusal(f"{before}\0{after}")
    assert refusal("", "--out") == "--out: is empty; name a path."


@fuzz
@given(ORDINARY.filter(lambda text: not text.startswith("/")))
@example("run")
def test_a_relative_path_in_a_working_folder_that_was_deleted_is_refused(text):
    with tempfile.TemporaryDirectory() as around, pytest.MonkeyPatch.context() as patch:
        gone = Path(around, "gone")
        gone.mkdir()
        patch.chdir(gone)
        gone.rmdir()
        assert "is relative to the current folder, which was deleted" in refusal(text)
        assert local_path(f"/{text}", "--workdir") == Path(f"/{text}")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with a run, logs and texts."""
    folder = tmp_path_factory.mktemp("home")
    make_run(folder).rename(folder / "a run")
    write_words(folder / "words.txt")
    (folder / "log.txt").write_text("".join(f"step:{i}/9 val_loss:{4 - i / 9}\n" for i in range(1, 10)))
    (folder / "old.txt").write_text("".join(f"step {i}/1000 loss=2.5 lr=1e-4\n" for i in range(10, 200, 10)))
    (folder / "rates.yaml").write_text("learning_rate: 0.000321\n")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, home, monkeypatch):
    """The folder that commands are started in, in which nothing is ever written."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(home))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def command(capsys):
    """Runs a command of `fftlm`, or main.py for arguments that begin with an option; returns exit code and texts."""

    def call(*arguments):
        try:
            code = main_here(*arguments) if arguments[0].startswith("--") else cli.main(list(arguments))
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "option,arguments",
    (
        ("--workdir", (QUICKSTART, f"--workdir={URL}")),
        ("--workdir", (QUICKSTART, "--workdir=file:///tmp/run", "--overwrite")),
        ("--workdir", (QUICKSTART, "--workdir=")),
        ("config.data.path", (QUICKSTART, f"--config.data.path={URL}")),
        ("config.data.path", (QUICKSTART, f"--config.data.path={URL}", "--dry_run")),
        ("init.checkpoint", (QUICKSTART, f"--config.init.checkpoint={URL}")),
        ("init.checkpoint", (QUICKSTART, f"--config.init.checkpoint={URL}", "--dry_run")),
        ("init.checkpoint", (RAFT, f"--config.init.checkpoint={URL}")),
        ("config.raft.lr_yaml", (RAFT, f"--config.raft.lr_yaml={URL}/rates.yaml")),
        ("config.raft.lr_yaml", (RAFT, f"--config.raft.lr_yaml={URL}/rates.yaml", "--dry_run")),
        ("--prompt_file", ("generate", "run", f"--prompt_file={URL}")),
        ("--text", ("evaluate", "run", f"--text={URL}")),
        ("--out", ("evaluate", "run", f"--out={URL}")),
        ("--out", ("export", "run", f"--out={URL}")),
        ("--out", ("compare", "log.txt", f"--out={URL}/picture.png")),
        ("runs", ("compare", "log.txt", URL)),
        ("--output", ("lr-schedule", "--yaml", f"--output={URL}")),
        *(
            ("RUN", (name, *form))
            for name in ("generate", "evaluate", "verify", "doctor", "raft-report", "raft-advise")
            for form in ((URL,), (f"--workdir={URL}",))
        ),
        ("RUN", ("export", URL, "--out=model")),
    ),
)
def test_every_option_that_is_a_path_refuses_a_url_in_one_line_and_writes_nothing(command, option, arguments):
    code, out, err = command(*arguments)
    reason = "is empty" if "--workdir=" in arguments else "is a URL, not a local path"
    assert (code, out) == (1, "") and err.count("\n") == 1 and "Error: " in err
    assert option in err.partition(" ")[2] and reason in err


@pytest.mark.parametrize("name", ("sweep", "spectral_sweep", "unlock_lr", "curriculum_ablation", "raft_lr", "soak"))
def test_so_does_every_experiment_of_its_folder(capsys, name):
    required = ["--config=config.py"] if name == "sweep" else []
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"experiments.{name}").main([*required, f"--out={URL}"])
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "--out: " in told and "is a URL, not a local path" in told


def test_a_url_given_in_a_program_is_refused_too(tmp_path):
    for call in (
        lambda: run(short_values(), URL),
        lambda: run(short_values(), Path(URL)),
        lambda: run(short_values(init__checkpoint=URL), tmp_path / "run"),
        lambda: run(short_values(data__path=URL), tmp_path / "run"),
        lambda: saved_run.load(URL, "last"),
    ):
        with pytest.raises(UsageError, match="is a URL, not a local path"):
            call()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def trained(monkeypatch):
    """The run directories and configs of runs that main.py would train, and does not."""
    found = []
    monkeypatch.setattr(loop, "run", lambda values, workdir, overwrite: found.append((workdir, values)))
    return found


@pytest.fixture
def cache(monkeypatch):
    """What is set in JAX for compiled programs, which is left alone."""
    found = {}
    for name in ("CI", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: found.update({name: value}))
    monkeypatch.setattr(jax.monitoring, "register_event_listener", lambda listener: None)
    monkeypatch.setattr(compile_cache.atexit, "register", lambda *_: None)
    return found


def test_compiled_programs_are_not_kept_behind_a_url_and_the_run_goes_on(command, trained, cache, monkeypatch):
    code, out, err = command(QUICKSTART, f"--config.compile_cache={URL}", "--workdir=run")
    assert (code, out, cache, len(trained)) == (0, "", {}, 1)
    assert (
        err.startswith(f"WARNING: compile_cache: '{URL}' is a URL") and "are not kept" in err and err.count("\n") == 1
    )
    monkeypatch.setenv("XDG_CACHE_HOME", URL)
    code, out, err = command(QUICKSTART, "--config.compile_cache=auto", "--workdir=run")
    assert (code, out, cache, len(trained)) == (0, "", {}, 2) and "WARNING: XDG_CACHE_HOME: " in err


def test_main_py_finds_the_home_folder_in_every_path(command, trained, cache, home):
    file = home / "a_config.py"
    file.write_text("from tests.faults.runs import short_values as get_config\n")
    code, _, err = command(
        "--config=~/a_config.py", "--workdir=~/new run", "--config.compile_cache=~/compiled",
        "--config.data.path=~/words.txt",
    )  # fmt: skip
    assert (code, err) == (0, "")
    ((workdir, values),) = trained
    assert workdir == home / "new run" and cache["jax_compilation_cache_dir"] == str(home / "compiled")
    assert (home / "compiled").is_dir()
    assert load_run_corpus(read_config(values)).fingerprint == fingerprint_of(home / "words.txt")
    assert load_run_corpus(read_config(short_values(data__path="~/w*.txt"))).fingerprint == fingerprint_of(home / "w*")


def fingerprint_of(path):
    return load_run_corpus(read_config(short_values(data__path=str(path)))).fingerprint


def test_a_program_finds_it_too(home):
    assert RunDirectory("~/a run").root == RunDirectory(Path("~/a run")).root == (home / "a run").resolve()
    assert saved_run.load("~/a run", "last").step == 8
    for name, step in (("~/a run", "8"), ("~/a run/checkpoints/7", "7")):
        assert saved_run.checkpoint_step(name) == (home / "a run" / "checkpoints" / step).resolve()
    assert saved_run.source_config("~/a run") == saved_run.source_config(str(home / "a run"))
    with_text = with_yaml_text(read_config(raft_values(raft__lr_yaml="~/rates.yaml")))
    assert from_yaml(with_text.raft.lr_yaml)(1) == 0.000321


BRACKETS = st.text(st.sampled_from("a1[]!*?-"), min_size=1, max_size=5).filter(lambda name: name.strip("."))


@settings(fuzz, max_examples=60)
@given(BRACKETS, BRACKETS)
@example("data[1]", "a[1].txt")
@example("d*", "*")
def test_what_exists_as_it_is_written_is_no_glob(folder, name):
    with tempfile.TemporaryDirectory() as above:
        root = Path(above, folder)
        for file in (root / name, root / "b.bytes", Path(above, "1") / "b.bytes"):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"xyz")
        assert matches(str(root / name)) == [str(root / name)] and matches(str(root)) == [str(root)]
        assert matches(str(root / "*.bytes")) == matches(str(root / "b.byte?")) == [str(root / "b.bytes")]
        assert matches(f"{above}/[0-1]/b.bytes") == [str(Path(above, "1", "b.bytes"))], "no folder is called so"
        assert matches(str(root / "none*")) == []


def test_a_corpus_below_a_folder_with_brackets_may_be_a_glob(home, here):
    (home / "texts[1]").mkdir()
    for name in ("a.txt", "b.txt"):
        write_words(home / "texts[1]" / name)
    (home / "texts[1]" / "c.md").write_text("no text of this corpus")
    found = load_run_corpus(read_config(short_values(data__path="~/texts[1]/*.txt")))
    assert "2 files" in found.description


def test_what_is_neither_a_file_nor_a_folder_is_no_corpus():
    with pytest.raises(DataError, match="data.path: /dev/null is no file; name a file, a folder or a glob"):
        load_run_corpus(read_config(short_values(data__path="/dev/null")))


def test_a_relative_cache_folder_does_not_count(home):
    for setting in ("a/folder", "./folder", "../folder", ""):
        environment = {"XDG_CACHE_HOME": setting}
        assert user_cache(environment) == user_cache({}) == home / ".cache"
        assert cache_folder("auto", environment) == home / ".cache" / "fftlm_jax" / "texts"
        assert compile_cache.default_folder(environment).parent == (home / ".cache" / "fftlm_jax").resolve()
    assert user_cache({"XDG_CACHE_HOME": "/a/folder"}) == Path("/a/folder")
    assert user_cache({"XDG_CACHE_HOME": "~/folder"}) == home / "folder"


def test_so_does_every_command_that_reads_a_run(command, home):
    code, out, _ = command("verify", "~/a run")
    assert code == 0 and "step 7: whole" in out
    code, out, _ = command("export", "~/a run", "--out=~/model")
    assert code == 0 and f"is exported to {home}/model" in out and (home / "model" / "README.md").is_file()
    code, out, _ = command("evaluate", "~/a run", "--max_bytes=500", "--out=~/scores", "--contexts=0", "--generate=0")
    assert code == 0 and f"see {home}/scores.png and {home}/scores.json" in out and (home / "scores.json").is_file()
    code, out, err = command("generate", "--workdir=~/a run", "--prompt_file=~/no prompt")
    assert (code, out) == (1, "") and f"--prompt_file: {home}/no prompt cannot be read (No such file" in err
    for name in ("doctor", "raft-report", "raft-advise", "generate", "evaluate"):
        code, out, err = command(name, "~/no run")
        assert (code, out) == (1, "") and f"{home}/no run" in err


def test_so_does_a_text_that_a_run_is_scored_on(command, home):
    options = ("--text=~/words.txt", "--out=~/of_text", "--contexts=0", "--generate=0")
    code, _, err = command("evaluate", "~/a run", *options)
    found = json.loads((home / "of_text.json").read_text())
    assert (code, err) == (0, "") and found["bpb"] > 0 and found["text"].endswith("words.txt")


def test_so_does_every_command_that_reads_a_log_or_none(command, home):
    code, out, _ = command("doctor", "~/old.txt")
    assert code == 0 and "healthy signs" in out
    code, out, _ = command("compare", "~/log.txt", "--out=~/pictures/losses.png")
    assert (code, out) == (0, f"{home}/pictures/losses.png\n") and (home / "pictures" / "losses.png").is_file()
    code, out, _ = command("lr-schedule", "--yaml", "--json", "--output=~/cycles")
    assert (code, out) == (0, f"see {home}/cycles.yaml\nsee {home}/cycles.json\n")
    assert from_yaml((home / "cycles.yaml").read_text())(1) == 5e-5


@pytest.fixture
def overridden(command, monkeypatch):
    """The config that main.py makes of overrides."""
    found = []
    monkeypatch.setattr("fftlm_jax.plan.dry_run.dry_run", found.append)

    def call(*overrides):
        code, out, err = command(f"--config={ROOT / 'configs' / 'tiny.py'}", "--dry_run", *overrides)
        assert (code, out, err) == (0, "", "")
        return found.pop()

    return call


@pytest.mark.parametrize(
    "key,first,last,value",
    (
        ("train.batch_stages", "(1,2)", "(1,3)", (1, 3)),
        ("train.batch_stages", "(1,2,3)", "(2,)", (2,)),
        ("lr.stages", "((1,1.0,0.5),('rest',1.0,0.1))", "(('rest',0.5,0.1),)", (("rest", 0.5, 0.1),)),
        ("curriculum.ladder", "(4,'full')", "('full',)", ("full",)),
        ("train.epochs", "5", "6", 6),
        ("sample.prompt", "a=b", "c=d", "c=d"),
        ("sample.ascii_only", "true", "false", False),
    ),
)
def test_of_an_override_that_is_given_twice_the_last_one_counts(overridden, key, first, last, value):
    section, _, name = key.partition(".")
    for option in (f"--config.{key}", f"-config.{key}"):
        c = overridden(f"--config.{key}={first}", "--config.seed=3", f"{option}={last}")
        assert c[section][name] == overridden(f"--config.{key}={last}")[section][name] == value and c.seed == 3
    assert overridden(f"--config.{key}={first}")[section][name] != value, "the test can fail"


def test_an_override_that_is_given_twice_needs_its_equals_sign(command, overridden):
    assert overridden("--config.train.epochs", "5").train.epochs == 5
    assert overridden("--config.train.epochs=5", "--config.train.epochs", "6").train.epochs == 6
    for last in (("--config.train.epochs", "6"), ("--config.train.epochs=6",)):
        code, out, err = command(QUICKSTART, "--config.train.epochs", "5", *last, "--dry_run")
        assert (code, out) == (1, "") and err.count("\n") == 1
        assert err.startswith("UsageError: --config.train.epochs is given twice")
