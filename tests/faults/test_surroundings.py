"""What the program around a run sets in JAX, its environment and folders, and `python -OO`.

A run is the same to the last bit, or refused by name. Settings are made as a program makes them, which is also what
their environment variables do.
"""

import os
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.cli import COMMANDS
from fftlm_jax.generation.sampling import SamplingConfig, draft, remember, row_keys
from fftlm_jax.model import init_params
from fftlm_jax.model.lora import LoRA, init_adapters
from fftlm_jax.plan.dry_run import dry_run
from fftlm_jax.raft import run_cycles
from fftlm_jax.recording.metrics import read_metrics
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.jax_settings import recorded_settings, require_devices
from fftlm_jax.runtime.process import run_command
from fftlm_jax.spectral import (
    CONVOLUTION_METHODS,
    LOW_PASS_METHODS,
    LowPass,
    causal_convolve,
    convolve_window,
    kernel_taps,
    low_pass_signal,
    low_pass_taps,
    mask_spectrum,
    toeplitz_matrix,
)
from fftlm_jax.training import run
from tests.faults.runs import assert_equal_runs, short_values
from tests.raft.raft_run import raft_values
from tests.tiny import ROOT, hash_of, main_here, run_main, tiny


@pytest.fixture
def set_in_jax():
    """Makes a setting of JAX until the end of the test."""
    before = {}

    def change(name, value):
        before.setdefault(name, getattr(jax.config, name))
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


REFUSED = {
    "jax_enable_x64": True,
    "jax_disable_jit": True,
    "jax_debug_infs": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_transfer_guard": "disallow",
    "jax_transfer_guard_host_to_device": "disallow",
    "jax_transfer_guard_device_to_host": "disallow_explicit",
    "jax_transfer_guard_device_to_device": "disallow",
}
WORK = {
    "training": lambda workdir, reference: run(short_values(), workdir),
    "training afresh": lambda workdir, reference: run(short_values(), workdir, overwrite=True),
    "fine-tuning": lambda workdir, reference: run_cycles.run(raft_values(), workdir),
    "a dry run": lambda workdir, reference: dry_run(short_values()),
    "a dry run of fine-tuning": lambda workdir, reference: run_cycles.dry_run(raft_values()),
    "a saved run": lambda workdir, reference: saved_run.load(reference, "last"),
}


def refused_by_name(name, folder, reference):
    for what, work in WORK.items():
        with pytest.raises(UsageError) as error:
            work(folder / "run", reference)
        told = str(error.value)
        assert told.startswith(f"{name.upper()}: is ") and f"jax.config.update({name!r}, " in told, what
        assert told.count("\n") == 0 and list(folder.iterdir()) == [], what


@pytest.mark.parametrize("name,value", REFUSED.items())
def test_a_setting_that_no_run_works_under_is_refused_by_name(set_in_jax, reference, tmp_path, capsys, name, value):
    usual = getattr(jax.config, name)
    usual = getattr(usual, "value", usual) if usual is not None else "allow"  # Some are enumerations.
    set_in_jax(name, value)
    refused_by_name(name, tmp_path, reference)
    assert main_here("--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"UsageError: {name.upper()}: is {value!r}, and runs work with {usual!r} alone")
    assert err.count("\n") == 1 and list(tmp_path.iterdir()) == []
    set_in_jax(name, usual)
    assert saved_run.load(reference, "last").step == 20, "the advice helps"


CONTEXTS = {
    "jax_enable_x64": lambda: jax.enable_x64(True),
    "jax_disable_jit": jax.disable_jit,
    "jax_debug_infs": lambda: jax.debug_infs(True),
    "jax_numpy_dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "jax_numpy_rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "jax_transfer_guard": lambda: jax.transfer_guard("disallow"),
    "jax_transfer_guard_host_to_device": lambda: jax.transfer_guard_host_to_device("disallow"),
}


@pytest.mark.parametrize("name,context", CONTEXTS.items())
def test_so_it_is_where_a_with_statement_makes_it(reference, tmp_path, name, context):
    with context():
        refused_by_name(name, tmp_path, reference)


HARMLESS = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_default_matmul_precision": "highest",
}


@pytest.mark.parametrize("name,value", [*REFUSED.items(), *HARMLESS.items()])
def test_the_hash_of_a_state_is_the_same_under_every_setting(set_in_jax, reference, name, value):
    expected = hash_of(reference)
    set_in_jax(name, value)
    assert hash_of(reference) == expected


def spectral_results():
    """What the functions of `spectral` give for some signals and kernels, and gradients of theirs."""
    rng = np.random.default_rng(0)
    u_BTD = jnp.asarray(rng.normal(size=(2, 40, 6)), jnp.float32)
    kernel_HK = jnp.asarray(rng.normal(size=(3, 12)), jnp.float32)
    kernel_LHK = jnp.asarray(rng.normal(size=(2, 3, 12)), jnp.float32)
    found = {}
    for method in CONVOLUTION_METHODS:
        energy = lambda u, kernel: jnp.sum(causal_convolve(u, kernel, method) ** 2)
        found[method] = causal_convolve(u_BTD, kernel_HK, method), jax.grad(energy, argnums=(0, 1))(u_BTD, kernel_HK)
        found[f"{method} twice"] = jax.grad(lambda u: jnp.sum(jax.grad(energy)(u, kernel_HK) ** 2))(u_BTD)
    found["window"] = convolve_window(u_BTD.swapaxes(1, 2)[:, :, :15], toeplitz_matrix(kernel_HK, 4, 15))
    for method in LOW_PASS_METHODS:
        for cutoff in (9, 21):
            low_pass = LowPass(cutoff, 21, method, 4)
            energy = lambda spectrum: jnp.sum(kernel_taps(spectrum, low_pass) ** 2)
            found[f"{method} {cutoff}"] = [
                *(
                    f(kernel, low_pass)
                    for f in (mask_spectrum, kernel_taps, low_pass_taps)
                    for kernel in (kernel_HK, kernel_LHK)
                ),
                *(jax.grad(energy)(kernel) for kernel in (kernel_HK, kernel_LHK)),
                low_pass_signal(u_BTD, low_pass, 12),
            ]
    return found


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


def test_spectral_functions_never_rely_on_ranks_that_are_promoted(set_in_jax):
    expected = jax.jit(lambda: spectral_results())()
    set_in_jax("jax_numpy_rank_promotion", "raise")
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) * jnp.ones(3)
    assert same(jax.jit(lambda: spectral_results())(), expected)


def numbers_of_rows(rows):
    """Keys of these rows, and a draft that each of them draws."""
    rng, sampling = np.random.default_rng(0), SamplingConfig(temperature=1.5, longest_run=3)
    next_V = jax.nn.log_softmax(jnp.asarray(rng.normal(size=256), jnp.float32))
    later_XV, recent_R = jnp.asarray(rng.normal(size=(7, 256)), jnp.float32), remember(b"ab", sampling.memory)
    keys = row_keys(11, rows)
    drawn = jax.vmap(lambda key: draft(key, jnp.int32(5), next_V, later_XV, jnp.asarray(recent_R), sampling)[0])(keys)
    return np.asarray(jax.random.key_data(keys)), np.asarray(drawn)


@pytest.mark.parametrize("implementation", ("rbg", "unsafe_rbg"))
def test_numbers_are_drawn_by_one_generator_whichever_the_program_around_prefers(set_in_jax, implementation):
    """Under `rbg` the numbers of a row would depend on the rows beside it."""
    rows, config, lora = (3, 0, 2**32 - 1, 7), tiny().model, LoRA(2, 4.0, 0.0, ("head", "w_up"))
    keys, drawn = numbers_of_rows(rows)
    params = init_params(config, 5)
    adapters = init_adapters(params, lora, 5)
    set_in_jax("jax_default_prng_impl", implementation)
    assert jax.random.key_data(jax.random.key(5)).shape == (4,), "the setting acts"
    assert same(numbers_of_rows(rows), (keys, drawn))
    for place, row in enumerate(rows):
        assert same(numbers_of_rows((row,)), (keys[place : place + 1], drawn[place : place + 1]))
    assert len(np.unique(drawn, axis=0)) == len(rows), "each row draws its own"
    assert same(init_params(config, 5), params) and same(init_adapters(params, lora, 5), adapters)


def test_a_run_that_goes_on_under_another_setting_says_so_and_records_it(set_in_jax, tmp_path, capsys):
    faults.arm("stop@mid_step:8")
    with pytest.raises(faults.Stopped):
        run(short_values(), tmp_path)
    usual = jax.config.jax_threefry_partitionable
    set_in_jax("jax_threefry_partitionable", not usual)
    capsys.readouterr()
    run(short_values(), tmp_path)
    told = capsys.readouterr().out
    assert f"environment changed: threefry_partitionable {usual} -> {not usual}" in told
    changes = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r.get("event") == "environment_changed"]
    assert [(r["step"], r["key"], r["from"], r["to"]) for r in changes] == [
        (5, "threefry_partitionable", usual, not usual)
    ]
    assert told.count("environment changed") == 1


def test_every_setting_that_changes_the_numbers_of_a_seed_is_recorded(set_in_jax):
    config, before = tiny().model, recorded_settings()
    params = init_params(config, 5)
    set_in_jax("jax_random_seed_offset", 3)
    assert not same(init_params(config, 5), params) and same(init_params(config, 2), params)
    assert recorded_settings() == {**before, "random_seed_offset": 3} != before


def test_what_an_earlier_version_did_not_record_has_not_changed(reference, tmp_path, capsys):
    faults.arm("stop@mid_step:8")
    with pytest.raises(faults.Stopped):
        run(short_values(), tmp_path)
    recorded = (tmp_path / "env.json").read_text()
    (tmp_path / "env.json").write_text(re.sub(r'  "threefry_partitionable": \w+,\n', "", recorded))
    assert (tmp_path / "env.json").read_text() != recorded
    run(short_values(), tmp_path)
    assert "environment changed" not in capsys.readouterr().out
    assert_equal_runs(tmp_path, reference)


# Has every command help in one process, as `fftlm COMMAND --help` would, and ends a line of its own behind each.
HELP = """
import sys
from fftlm_jax import cli

assert cli.__doc__ is None, "docstrings are there"
for name in ("", *cli.COMMANDS):
    try:
        code = cli.main([name, "--help"] if name else ["--help"])
    except SystemExit as ended:
        code = ended.code
    print(f"-- {name} ended with {code or 0}")
"""


@pytest.fixture(scope="module")
def help_without_docstrings(tmp_path_factory):
    """What each command says of itself under `python -OO`; its compiled files are put elsewhere."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled")),
    }
    command = [sys.executable, "-OO", "-c", HELP]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    *texts, rest = re.split(r"-- ([\w-]*) ended with (\d+)\n", done.stdout)
    assert rest == ""
    return {name: (text, int(code)) for text, name, code in zip(texts[::3], texts[1::3], texts[2::3])}


def test_every_command_helps_where_python_strips_docstrings(help_without_docstrings):
    assert list(help_without_docstrings) == ["", *COMMANDS]
    for name, (text, code) in help_without_docstrings.items():
        assert code == 0, name
        if name not in ("", "train"):
            assert f"usage: fftlm {name} " in text and "show this help message" in text
    assert all(f"    {name} " in help_without_docstrings[""][0] for name in COMMANDS)
    assert all(option in help_without_docstrings["train"][0] for option in ("--config=", "--workdir:", "--dry_run:"))


def test_no_command_shows_a_docstring_that_is_not_there(help_without_docstrings):
    assert [name for name, (text, _) in help_without_docstrings.items() if "None" in text.split()] == []


# The command `fftlm` where there is no folder for temporary files, and none for settings below the home.
NO_FOLDERS = """
import sys, tempfile

def refuse(*_, **__):
    raise FileNotFoundError(2, "No usable temporary directory found")

tempfile._get_default_tempdir = tempfile.mkdtemp = refuse
from fftlm_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def without_folders(file, *arguments):
    """Runs `fftlm`; its home lies below a file."""
    file.write_text("no folder")
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "HOME": str(file / "home"), "MPLCONFIGDIR": ""}
    command = [sys.executable, "-c", NO_FOLDERS, *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=200, check=False)


def test_a_run_needs_no_folder_but_its_own(tmp_path):
    config = tmp_path / "short.py"
    config.write_text("from tests.faults.runs import short_values as get_config")
    length = ("--config.train.epochs=2", "--config.eval.every=4")
    done = without_folders(tmp_path / "file", "train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *length)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("WARNING: curves.png cannot be written (Matplotlib requires access to a writable") == 1
    assert hash_of(tmp_path / "run", 8) and "finished 8 steps" in done.stdout


def test_a_command_that_draws_names_the_folder_that_it_needs(tmp_path, reference):
    done = without_folders(tmp_path / "file", "evaluate", str(reference))
    told = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "") and "Traceback" not in done.stderr
    assert told[-1].startswith("UsageError: fftlm evaluate cannot be loaded: Matplotlib requires access to a writable")
    assert "set the MPLCONFIGDIR environment variable" in told[-1]


def test_no_warning_of_a_library_ends_a_command_and_the_filters_stay_as_they_were():
    def warn():
        warnings.warn("of some library", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        assert run_command(warn) == 0
        assert warnings.filters == filters
    assert [str(warning.message) for warning in shown] == ["of some library"]


def test_main_py_works_where_warnings_are_errors():
    done = run_main("--config=configs/tiny.py", "--dry_run", env={"PYTHONWARNINGS": "error"})
    assert done.returncode == 0 and "nothing was written" in done.stdout, done.stderr


@pytest.mark.parametrize("asked", ("JAX_PLATFORMS=nosuch", "JAX_PLATFORMS=cpu JAX_PLATFORM_NAME=gpu"))
def test_platforms_that_are_not_there_are_refused_by_name(tmp_path, reference, asked):
    """In a process of its own, since jax finds its devices once."""
    environment = {**os.environ, **dict(setting.split("=") for setting in asked.split())}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 200, "check": False}
    work = [sys.executable, "-c", EVERY_KIND_OF_WORK, str(tmp_path / "run"), str(reference)]
    done = subprocess.run(work, **options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(WORK) and list(tmp_path.iterdir()) == []
    assert all(line.startswith(f"{asked}: jax finds no such device (") for line in lines), lines
    checked = subprocess.run([sys.executable, "-m", "fftlm_jax.training.verify", str(reference)], **options)
    assert checked.returncode == 0 and hash_of(reference) in checked.stdout, "which takes no accelerator"


def test_so_is_a_platform_without_its_plugin(monkeypatch):
    def no_plugin():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", no_plugin)
    with pytest.raises(
        UsageError, match=r"^JAX_PLATFORMS=\S+: jax finds no such device \(no plugin of jax provides it"
    ):
        require_devices()


EVERY_KIND_OF_WORK = """
import sys
from fftlm_jax.runtime.errors import UsageError
from tests.faults.test_surroundings import WORK

for what, work in WORK.items():
    try:
        work(*sys.argv[1:])
    except UsageError as error:
        print(error)
"""


def test_a_variable_that_jax_cannot_read_is_named(tmp_path):
    done = run_main("--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", env={"JAX_ENABLE_X64": "maybe"})
    assert (done.returncode, done.stdout) == (1, "") and list(tmp_path.iterdir()) == []
    assert re.fullmatch(r"UsageError: jax cannot be loaded: .*'JAX_ENABLE_X64'; correct or unset .*\n", done.stderr)
