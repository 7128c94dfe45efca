"""Run directories from strangers: what they declare is not believed, no link leads out, and no pickle is opened."""

import json
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from fftlm_jax.checkpoints import saved_run
from fftlm_jax.checkpoints.run_directory import RunDirectory
from fftlm_jax.checkpoints.save_restore import Checkpoints
from fftlm_jax.checkpoints.saved_step import MANIFEST, manifest_fault, read_arrays, write_manifest
from fftlm_jax.checkpoints.verification import main as verify
from fftlm_jax.config.reading import to_dict
from fftlm_jax.generation import terminal
from fftlm_jax.model import init_params
from fftlm_jax.runtime.errors import CheckpointError, RunError
from fftlm_jax.training import loop
from fftlm_jax.training.optimizer import build_optimizer_of
from fftlm_jax.training.run_parts import config_of, first_state
from tests.tiny import tiny, tiny_values

VALUES = {"model__n_layers": 1, "curriculum__rule": "none", "sample__bytes": 0, "train__epochs": 1}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A small run directory as training leaves it, made without training."""
    folder = tmp_path_factory.mktemp("stranger") / "run"
    config, directory = tiny(**VALUES), RunDirectory(folder)
    directory.acquire()
    directory.release()
    directory.write_config(to_dict(config))
    host = {"controller": {"cutoff": 17, "losses": [], "raises": []}, "corpus": "c", "config": to_dict(config)}
    checkpoints = Checkpoints(directory.checkpoints)
    for step in (1, 2):
        checkpoints.save(step, {"params": init_params(config.model, step)}, host)
    checkpoints.close()
    return folder


@pytest.fixture
def copy(stranger, tmp_path):
    """One that may be changed."""
    shutil.copytree(stranger, tmp_path / "run")
    return tmp_path / "run"


def rewrite_manifest(step):
    """As whoever changes a file would do."""
    (step / MANIFEST).unlink()
    write_manifest(step)


def redeclare(step, name, **changes):
    """Makes the file say something else of an array, and the manifest say that this is how it was."""
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{step / 'arrays'}/"}).result()
    key = f"{name}/.zarray".encode()
    declared = json.loads(store.read(key).result().value)
    store.write(key, json.dumps({**declared, **changes}).encode()).result()
    rewrite_manifest(step)


@pytest.fixture
def nothing_read(monkeypatch):
    """Fails where arrays are read in spite of all."""

    def read(*_, **__):
        raise AssertionError("arrays were read")

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", read)
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", read)


def test_the_run_itself_is_readable(stranger, capsys):
    assert saved_run.load(stranger, "last").step == 2
    assert verify([str(stranger)]) == 0
    assert "step 2: whole\nstate of step 2: " in capsys.readouterr().out
    assert config_of(tiny_values(**VALUES, init__checkpoint=str(stranger))).model.d_model == 16


HUGE, NORM = 10**13, "params.final_norm.scale"
DECLARATIONS = {
    "terabytes": ({"shape": [HUGE], "chunks": [HUGE]}, "than files of"),
    "terabytes in one chunk": ({"chunks": [HUGE]}, "than files of"),
    "another shape": ({"shape": [15]}, r"params/final_norm/scale is \(\(15,\)"),
    "another dtype": ({"dtype": "<f8"}, "params/final_norm/scale is .*float64"),
    "no shape": ({"shape": "x"}, "cannot be read"),
    "another format": ({"zarr_format": 7}, "cannot be read"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops its event loop in haste.
@pytest.mark.parametrize("case", DECLARATIONS)
def test_what_a_file_declares_is_compared_before_it_is_read(copy, case, nothing_read):
    changes, message = DECLARATIONS[case]
    step = copy / "checkpoints" / "2"
    redeclare(step, NORM, **changes)
    assert manifest_fault(step) is None, "hashes say nothing about malice"
    config = tiny(**VALUES, init__checkpoint=str(copy))
    with pytest.raises(CheckpointError, match=message):
        saved_run.load(copy, "last")
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        first_state(config, build_optimizer_of(config))
    abstract = jax.eval_shape(lambda: {"params": init_params(config.model, 0)})
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(copy / "checkpoints").restore(abstract)


@pytest.mark.parametrize("case", ("terabytes", "terabytes in one chunk", "no shape"))
def test_verify_asks_no_config_and_yet_allocates_no_terabytes(copy, case, nothing_read, capsys):
    redeclare(copy / "checkpoints" / "2", NORM, **DECLARATIONS[case][0])
    assert verify([str(copy)]) == 4
    err = capsys.readouterr().err
    assert err.startswith("CheckpointError: ") and err.count("\n") == 1
    assert ("params/final_norm/scale' alone 4.0e+13" in err) == case.startswith("terabytes")


def test_compressed_zeros_are_still_readable(tmp_path):
    """Moments of what never occurred are zeros; the limit lies far beyond what they save."""
    Checkpoints(tmp_path).save(1, {"a": np.zeros(1 << 23, np.float32)}, {})
    assert read_arrays(tmp_path / "1")["a"].shape == (1 << 23,)


@pytest.mark.parametrize(
    "case,changes,message",
    (
        ("no terabytes", {"d_model": 2**16, "n_layers": 4096}, "parameters, more than"),
        ("more than it holds", {"n_layers": 3000}, "describes a model of 5,"),
        ("kernels without end", {"conv_heads": 16, "kernel_len": 2**20}, "describes a model of 16,"),
        ("too many kernels", {"d_model": 2**16, "conv_heads": 2**16, "kernel_len": 2**20}, "taps in a layer"),
        ("a little larger", {"d_model": 20}, r"must be \(\(20,\)"),
        ("windows without end", {"seq_len": 10**15}, "config.model.seq_len: must be at most"),
        ("no number", {"d_model": "16"}, "config.model.d_model: must be int"),
        ("unknown", {"d_modle": 16}, "did you mean 'd_model'"),
    ),
)
def test_a_config_is_no_larger_than_its_weights(copy, case, changes, message, nothing_read):
    values = json.loads((copy / "config.json").read_text())
    values["model"].update(changes)
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message) as error:
        saved_run.load(copy, "last")
    assert error.value.exit_code == 4
    if case not in ("unknown", "a little larger"):
        with pytest.raises(RunError, match="describes a model|config.model|init.checkpoint"):
            config_of(tiny_values(**VALUES, init__checkpoint=str(copy)))


@pytest.mark.parametrize("name", ("weights.pkl", "arrays/d/x.PT", "host/state.pickle", "model.pth"))
def test_a_step_with_a_pickle_is_not_opened(copy, name, capsys):
    step = copy / "checkpoints" / "2"
    (step / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    rewrite_manifest(step)
    assert f"'{name}' is a pickle" in manifest_fault(step)
    with pytest.raises(CheckpointError, match=f"{name}.* is a pickle"):
        saved_run.load(copy, "last")
    with pytest.raises(CheckpointError, match="is a pickle"):
        config_of(tiny_values(**VALUES, init__checkpoint=str(step)))
    assert verify([str(copy)]) == 4 and f"{name}' is a pickle" in capsys.readouterr().out
    restored = Checkpoints(copy / "checkpoints").restore({"params": init_params(tiny(**VALUES).model, 0)})
    assert restored.step == 1 and (copy / "quarantine" / "2").is_dir()


def leading_out(copy, name):
    """Replaces something of a run by a link to a place outside; returns the place."""
    outside = copy.parent / "outside"
    inside = copy / name
    if inside.is_dir():
        shutil.move(inside, outside)
    else:
        outside.write_bytes(inside.read_bytes() if inside.exists() else b"precious\n")
    inside.unlink(missing_ok=True)
    inside.symlink_to(outside)
    return outside


LINKS = (
    *("config.json", "metrics.jsonl", "samples.txt", "run.log", "lock", "config.json.tmp", "curves.png"),
    *("checkpoints", "checkpoints/2", "checkpoints/2/arrays", "checkpoints/2/host/metadata"),
)


@pytest.mark.parametrize("name", LINKS)
def test_no_link_leads_out_of_a_run_directory(copy, name, capsys):
    """Through such a link, going on would write to, cut short or move away what lies elsewhere."""
    outside = leading_out(copy, name)
    before = {p: p.read_bytes() for p in (outside.rglob("*") if outside.is_dir() else [outside]) if p.is_file()}
    message = f"{name}' is a link that leads out of the run directory"
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match=message):
            loop.run(tiny_values(**VALUES), copy, overwrite=overwrite)
    with pytest.raises(CheckpointError, match=message):
        saved_run.load(copy, "last")
    with pytest.raises(CheckpointError, match=message):
        config_of(tiny_values(**VALUES, init__checkpoint=str(copy)))
    assert terminal.main([f"--workdir={copy}", "--prompt=a"]) == 4
    assert verify([str(copy)]) == 4
    err = capsys.readouterr().err
    assert err.count(message) == 2 and "Traceback" not in err
    assert {p: p.read_bytes() for p in before} == before and before


def test_a_lone_lock_that_leads_out_is_not_written_to(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match="'lock' is a link that leads out"):
        RunDirectory(tmp_path / "run").acquire()
    assert (tmp_path / "precious").read_text() == "precious"


def test_links_that_stay_inside_and_a_link_to_the_run_are_fine(copy, tmp_path):
    (copy / "latest").symlink_to("config.json")
    (copy / "round").symlink_to("round")
    (tmp_path / "elsewhere").symlink_to(copy)
    assert saved_run.load(tmp_path / "elsewhere", "last").step == 2


def test_a_step_is_no_link_even_to_another_step(copy):
    shutil.rmtree(copy / "checkpoints" / "2")
    (copy / "checkpoints" / "2").symlink_to("1")
    with pytest.raises(CheckpointError, match="it is a link, not a folder"):
        saved_run.load(copy, "last")


@pytest.mark.parametrize("name", ("../1/_CHECKPOINT_METADATA", "/etc/hostname", "arrays/../../1/_CHECKPOINT_METADATA"))
def test_a_manifest_names_no_file_elsewhere(copy, name):
    manifest = copy / "checkpoints" / "2" / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    files[name] = files["_CHECKPOINT_METADATA"]
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n")
    assert manifest_fault(manifest.parent) == f"its manifest lists '{name}', which is no file of it"


def test_a_file_that_no_manifest_lists_is_named(copy):
    step = copy / "checkpoints" / "2"
    (step / "arrays" / "d" / "more").write_bytes(b"x")
    assert manifest_fault(step) == "'arrays/d/more' is not in its manifest"


@pytest.mark.parametrize(
    "content,message",
    (
        (b"{", "metadata cannot be read"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"corpus": "c"}', "controller.cutoff must be a whole number within 1 and 17, not None"),
        (b'{"corpus": "c", "controller": {"cutoff": 1000000000000}}', "controller.cutoff must be"),
        (b'{"corpus": "c", "controller": [4]}', "controller.cutoff must be"),
        (b'{"corpus": 3, "controller": {"cutoff": 4}}', "corpus must be a text, not 3"),
    ),
)
def test_a_host_state_that_cannot_be_used_is_said(copy, content, message):
    step = copy / "checkpoints" / "2"
    (step / "host" / "metadata").write_bytes(content)
    rewrite_manifest(step)
    with pytest.raises(CheckpointError, match=message):
        saved_run.load(copy, "last")


def test_a_pipe_is_not_waited_for(copy):
    os.remove(copy / "checkpoints" / "2" / "host" / "metadata")
    os.mkfifo(copy / "checkpoints" / "2" / "host" / "metadata")
    os.remove(copy / "checkpoints" / "2" / "manifest.json")
    os.mkfifo(copy / "checkpoints" / "2" / "manifest.json")
    assert manifest_fault(copy / "checkpoints" / "2") == "its manifest cannot be read"
    with pytest.raises(CheckpointError, match="cannot be read"):
        saved_run.load(copy, "last")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    loop.run(tiny_values(**VALUES), folder)
    return folder


@pytest.mark.parametrize(
    "field,value",
    (("metrics_bytes", None), ("best_bpb", "low"), ("epoch_loss", 3), ("scores", []), ("elapsed", -1), ("config", 1)),
)
def test_training_goes_on_from_no_state_with_a_wrong_field(trained, tmp_path, field, value):
    shutil.copytree(trained, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "4"
    host = json.loads((step / "host" / "metadata").read_text())
    (step / "host" / "metadata").write_text(json.dumps({**host, field: value}))
    rewrite_manifest(step)
    with pytest.raises(CheckpointError, match=f"checkpoints/4: its host state cannot be used: {field} must be"):
        loop.run(tiny_values(**VALUES), tmp_path / "run")


def test_what_training_wrote_itself_is_accepted(trained, capsys):
    assert loop.run(tiny_values(**VALUES), trained)["step"] == 4
    assert "already finished" in capsys.readouterr().out


def test_nothing_in_a_run_directory_says_where_it_is_but_orbax(trained):
    """Orbax's own marks of completion hold its path; what this package writes does not, so that logs can be shared."""
    for file in trained.rglob("*"):
        if file.is_file() and file.name not in ("commit_success.txt", "run.log"):
            assert str(trained.parent).encode() not in file.read_bytes(), file
