"""Exports: the same model bit for bit, nothing about where it was made, and an example that runs as it stands."""

import contextlib
import getpass
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file, save_file

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.cli import main as cli_main
from fftlm_jax.export import export_run, exported_model
from fftlm_jax.export.exported_model import (
    ExportedConfig,
    export_files,
    load_exported,
    next_byte_logits,
    params_of,
    tensors_of,
    write_folder,
)
from fftlm_jax.export.model_readme import readme
from fftlm_jax.model import build
from fftlm_jax.runtime.errors import CheckpointError
from fftlm_jax.spectral import LowPass, no_filter
from tests.generation.made_up_run import make_run
from tests.tiny import ROOT, tiny

WINDOWS = np.random.default_rng(0).integers(0, 256, (3, 32)).astype(np.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A saved run in a folder whose name is nobody's business."""
    return make_run(tmp_path_factory.mktemp("private_place"))


@pytest.fixture(scope="module")
def exported(workdir):
    """A whole export of it."""
    out = workdir.parent / "model"
    assert export_run.main([f"--workdir={workdir}", f"--out={out}", "--step=last", "--stablehlo"]) == 0
    return out


def bitwise_equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


def python_blocks(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("averaged", (False, True))
def test_weights_come_back_bit_for_bit(workdir, tmp_path, averaged):
    saved = saved_run.load(workdir, "last", averaged=averaged)
    arguments = [f"--workdir={workdir}", f"--out={tmp_path / 'new' / 'model'}", "--step=last"]
    assert export_run.main(arguments + ["--ema"] * averaged) == 0
    assert {p.name for p in (tmp_path / "new" / "model").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    config, params = load_exported(tmp_path / "new" / "model")
    assert bitwise_equal(params, saved.params)
    assert config == ExportedConfig(saved.step, "average" if averaged else "raw", saved.config.model, saved.low_pass)
    original = ExportedConfig(0, "raw", saved.config.model, saved.low_pass)
    assert np.array_equal(next_byte_logits(config, params, WINDOWS), next_byte_logits(original, saved.params, WINDOWS))


def some_params(model):
    """Random weights in a model's shapes."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), build(model)[1])


VARIANTS = {
    "chunks": {},
    "memory": {"model__memory": "aligned", "model__memory_piece": 4},
    "attention": {"model__mixer": "attention", "curriculum__rule": "none"},
    "bfloat16": {"model__dtype": "bfloat16", "model__kernel_basis": "taps"},
    "signal": {},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_program_computes_the_same_bits(variant, tmp_path, monkeypatch, capsys):
    """As the forward pass of this package, for any number of windows; and both examples find the same next byte."""
    model = tiny(model__n_layers=1, **VARIANTS[variant]).model
    config = ExportedConfig(5, "raw", model, LowPass(8, 17, "signal") if variant == "signal" else no_filter(32))
    params = some_params(model)
    program = exported_model.forward_program(config)
    write_folder(tmp_path, export_files(config, params, readme(config, 1, with_program=True), program))
    loaded_config, loaded = load_exported(tmp_path)
    assert loaded_config == config and bitwise_equal(loaded, params)
    forward = jax_export.deserialize(bytearray(program))
    for windows in (WINDOWS, WINDOWS[:1])[: 2 if variant == "chunks" else 1]:
        expected = next_byte_logits(config, params, windows)
        assert np.array_equal(forward.call(load_file(tmp_path / "model.safetensors"), windows), expected)
    assert set(forward.platforms) == {"cpu", "cuda", "tpu"}
    if variant in ("chunks", "signal"):
        monkeypatch.chdir(tmp_path)
        for block in python_blocks(tmp_path):
            exec(compile(block, "README.md", "exec"), {})
        first, generated, second = capsys.readouterr().out.splitlines()
        assert first == second and first.startswith("next byte: b") and len(eval(generated)) == 100


def test_the_example_of_the_program_runs_without_this_package(exported):
    """In a process of its own; the test above runs both examples in this one."""
    _, program = python_blocks(exported)
    program += "import sys\nassert 'fftlm_jax' not in sys.modules\n"
    config, params = load_exported(exported)
    window = np.frombuffer(b"def main(".ljust(32, b"\0"), np.uint8)[None]
    byte = next_byte_logits(config, params, window)[0, len("def main(") - 1].argmax()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=exported, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, f"next byte: {bytes([byte])}\n"), done.stderr


def text_in(file):
    """What can be read in a file: runs of printable characters; of weights their header, the rest being numbers."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        content = content[8 : 8 + int.from_bytes(content[:8], "little")]
    return "\n".join(run.decode() for run in re.findall(rb"[ -~\n]{5,}", content))


def private_words(workdir):
    """What must not be in an export: where it was made, from what, by whom, with which files."""
    places = (workdir, ROOT, pathlib.Path.home(), tempfile.gettempdir(), sys.prefix, pathlib.Path(jax.__file__).parent)
    words = {re.escape(str(place)) for place in places if len(str(place)) > 1}
    return words | {"private_", "site-packages", r"[.]py\b", rf"\b{socket.gethostname()}\b", rf"/{getpass.getuser()}/"}


def test_nothing_says_where_it_was_made(workdir, exported):
    for file in exported.iterdir():
        text = text_in(file)
        assert {"README.md": "language model", "forward.stablehlo": "StableHLO"}.get(file.name, "mixer") in text
        assert [word for word in private_words(workdir) if re.search(word, text)] == [], file


def test_a_program_lowered_as_usual_would_say_it(workdir, exported, monkeypatch):
    """So that the test above can fail."""
    config, _ = load_exported(exported)
    monkeypatch.setattr(exported_model, "_no_source_locations", contextlib.nullcontext)
    leaky = exported_model.forward_program(config)
    assert str(ROOT).encode() in leaky and b".py" in leaky
    monkeypatch.undo()
    before = jax.config.jax_traceback_in_locations_limit
    assert exported_model.forward_program(config) == (exported / "forward.stablehlo").read_bytes()
    assert jax.config.jax_traceback_in_locations_limit == before


def test_an_export_replaces_an_export_and_nothing_else(workdir, tmp_path, capsys):
    out = tmp_path / "model"
    out.mkdir()
    config = ExportedConfig(5, "raw", tiny().model, no_filter(32))
    write_folder(out, export_files(config, some_params(config.model), "read", b"a program"))
    (out / "notes.txt").write_text("mine")
    assert export_run.main([f"--workdir={workdir}", f"--out={out}"]) == 0
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "config.json", "README.md", "notes.txt"}
    assert bitwise_equal(load_exported(out)[1], saved_run.load(workdir, "best").params)
    (out / "config.json").write_text("{}")
    before = {p: p.read_bytes() for p in out.iterdir()}
    capsys.readouterr()
    for place, message in ((out, "holds files but no export"), (out / "notes.txt", "is a file; name a folder")):
        assert export_run.main([f"--workdir={workdir}", f"--out={place}"]) == 1
        assert capsys.readouterr().err == f"UsageError: --out: {place} {message}" + (
            "; name another folder or empty it.\n" if place == out else ".\n"
        )
    assert {p: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize("package,arguments", (("safetensors.numpy", []), ("flatbuffers", ["--stablehlo"])))
def test_a_missing_package_is_named_and_nothing_is_written(workdir, tmp_path, monkeypatch, capsys, package, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    assert export_run.main([f"--workdir={workdir}", f"--out={tmp_path / 'model'}", *arguments]) == 1
    name = package.partition(".")[0]
    assert capsys.readouterr().err == (
        f'UsageError: the package {name} is not installed; pip install -e ".[export]" brings it.\n'
    )
    assert not (tmp_path / "model").exists()


def copy_of(exported, folder):
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((exported / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    "case,change,message",
    (
        ("missing", lambda t: t.pop("final_norm.scale"), r"final_norm.scale is missing but must be \(\(16,\)"),
        ("extra", lambda t: t.update(more=np.zeros(3)), r"more is \(\(3,\), dtype\('float64'\)\) but must be absent"),
        ("dtype", lambda t: t.update({"final_norm.scale": np.zeros(16)}), r"float64.* but must be .*float32"),
        ("shape", lambda t: t.update({"embed.embedding": np.zeros((2, 16), np.float32)}), r"must be \(\(256, 16\)"),
    ),
)
def test_only_the_arrays_of_the_config_are_taken(exported, tmp_path, case, change, message):
    folder = copy_of(exported, tmp_path / "model")
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"does not fit its config: .*{message}"):
        load_exported(folder)


@pytest.mark.parametrize(
    "case,change,message",
    (
        ("another format", lambda c: c.update(version=2), '"version": 1'),
        ("an unknown key", lambda c: c.update(data="x"), "nothing less and nothing more"),
        ("no low-pass", lambda c: c.pop("low_pass"), "nothing less and nothing more"),
        ("a model that cannot be", lambda c: c["model"].update(d_model=-1), "config.model.d_model: must be"),
        ("a model that does not fit", lambda c: c["model"].update(conv_heads=3), "3 heads do not divide d_model 16"),
        ("a key of the model", lambda c: c["model"].pop("dtype"), "lacks dtype"),
        ("a method", lambda c: c["low_pass"].update(method="none"), "is none of"),
        ("other windows", lambda c: c["low_pass"].update(bins=20), "the bins of its window"),
        ("no number", lambda c: c["low_pass"].update(cutoff=4.5), "must be whole"),
        ("a model without end", lambda c: c["model"].update(kernel_len=10**15), "kernel_len: must be at most 1048576"),
        ("one beyond its file", lambda c: c["model"].update(kernel_len=2**20), "describes a model of 4,"),
        ("a long config", lambda c: c.update(data="x" * 10**5), "longer than 65536 bytes"),
    ),
)
def test_a_config_is_checked_before_anything_is_built(exported, tmp_path, case, change, message):
    folder = copy_of(exported, tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=re.escape(message)) as raised:
        load_exported(folder)
    assert "\n" not in str(raised.value)


def test_damage_is_said(exported, tmp_path):
    folder = copy_of(exported, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    for content in (whole[:-8], whole[:4], b"\xff" * 100):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
            load_exported(folder)
    for content in (b"\xff\xfe", b"[1]", b"{"):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match="is no config of an export"):
            load_exported(folder)
    with pytest.raises(CheckpointError, match="is no config of an export .*No such file"):
        load_exported(tmp_path / "nowhere")


def test_names_are_paths():
    params = {"blocks": {"mixer": {"gain": 1, "w_in": 2}}, "head": {"kernel": 3}}
    assert tensors_of(params) == {"blocks.mixer.gain": 1, "blocks.mixer.w_in": 2, "head.kernel": 3}
    assert params_of(tensors_of(params)) == params


def test_readmes_of_older_exports_still_import_what_they_name():
    from fftlm_jax import export, exported

    assert exported.load_exported is export.load_exported and exported.next_byte_logits is export.next_byte_logits


def test_an_export_of_an_earlier_version_lacks_later_keys_and_can_be_loaded(exported, tmp_path):
    folder = copy_of(exported, tmp_path / "older")
    config = json.loads((folder / "config.json").read_text())
    assert config["model"].pop("precision") == "default"
    (folder / "config.json").write_text(json.dumps(config))
    assert load_exported(folder)[0] == load_exported(exported)[0]


@pytest.mark.parametrize("command", ("generate", "doctor", "evaluate", "export", "raft-advise", "raft-report"))
def test_a_command_that_is_given_an_export_says_what_that_is_and_what_reads_it(exported, tmp_path, capsys, command):
    options = [f"--out={tmp_path / 'copy'}"] if command == "export" else []
    assert cli_main([command, str(exported), *options]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and not (tmp_path / "copy").exists()
    assert f"UsageError: {exported} is a model that `fftlm export` wrote" in told.err and "load_exported" in told.err
