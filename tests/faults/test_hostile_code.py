"""Nothing here executes what it reads; importing the package opens no connection and brings in no other framework."""

import ast
import subprocess
import sys

from tests.tiny import ROOT


def python_files(place):
    return [place] if place.is_file() else place.rglob("*.py")


FILES = sorted(
    file for folder in ("fftlm_jax", "experiments", "configs", "main.py") for file in python_files(ROOT / folder)
)
SERIALISERS = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "_pickle", "jsonpickle"}
NETWORK = {"socket", "http", "urllib", "requests", "ftplib", "asyncio", "socketserver", "xmlrpc", "smtplib", "ssl"}
# Files that may use the network, and what for.
ON_THE_NETWORK = {"fftlm_jax/data/download.py": "fetches public texts when it is asked to"}
TORCH_PEERS = ("experiments/torch_peers.py", "experiments/nanogpt_peer.py")  # What benchmarks compare with.
# Attributes by the last name of what they are taken from.
FORBIDDEN_CALLS = {
    ("torch", "load"),
    *(("yaml", name) for name in ("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load")),
    *(("os", name) for name in ("system", "popen", "execv", "execve", "execvp", "spawnl", "spawnv")),
    ("subprocess", "getoutput"),
    ("subprocess", "getstatusoutput"),
    ("jax", "deserialize"),
    ("export", "deserialize"),
    ("serialize_executable", "deserialize_and_load"),
}


def faults_of(source, name=""):
    """What a source does that it must not, in words."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        roots = {module.split(".")[0] for module in modules}
        faults += [f"imports {root}" for root in roots & SERIALISERS]
        if name not in ON_THE_NETWORK:
            faults += [f"imports {root}" for root in roots & NETWORK]
        if "torch" in roots and name not in TORCH_PEERS:
            faults.append("imports torch")
        faults += [f"takes {module}" for module in modules if tuple(module.split(".")[-2:]) in FORBIDDEN_CALLS]
        if isinstance(node, ast.Call):
            faults += _faults_of_call(node)
    return faults


def _faults_of_call(node):
    function, keywords = node.func, {k.arg: k.value for k in node.keywords}
    if isinstance(function, ast.Name) and function.id in ("eval", "exec", "compile", "__import__"):
        yield f"calls {function.id}"
    if isinstance(function, ast.Attribute):
        owner = function.value
        last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        if (last, function.attr) in FORBIDDEN_CALLS:
            yield f"calls {last}.{function.attr}"
    for name in ("shell", "allow_pickle"):
        value = keywords.get(name)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
            yield f"passes {name}"
    if isinstance(function, ast.Attribute) and function.attr == "load" and "allow_pickle" not in keywords:
        owner = getattr(function.value, "id", "")
        if owner in ("np", "numpy"):
            yield "calls np.load without saying that it takes no pickles"


def test_no_source_executes_what_it_reads():
    names = {file.relative_to(ROOT).as_posix(): file for file in FILES}
    found = {name: faults_of(file.read_text(encoding="utf-8"), name) for name, file in names.items()}
    assert {name: faults for name, faults in found.items() if faults} == {}
    assert len(found) > 100, "the files were found"


FAULTY = (
    "import pickle", "from pickle import loads", "import dill as d", "import shelve", "import marshal.x",
    "import torch", "import torch\ntorch.load('x')", "from torch import load", "import numpy as np\nnp.load('x')",
    "np.load('x', allow_pickle=True)", "np.load('x', allow_pickle=flag)", "yaml.load(t)", "yaml.unsafe_load(t)",
    "from yaml import unsafe_load", "eval('1')", "exec(t)", "compile(t, '', 'exec')", "os.system('x')",
    "subprocess.run('x', shell=True)", "import socket", "from urllib.request import urlopen", "import http.server",
    "jax.export.deserialize(b)", "from os import system",
)  # fmt: skip


def test_the_search_finds():
    assert [source for source in FAULTY if not faults_of(source, "fftlm_jax/x.py")] == []


def test_the_search_leaves_alone_what_is_harmless():
    harmless = "import json, yaml\nyaml.safe_load(t)\nnp.load(f, allow_pickle=False)\nsubprocess.run([x], shell=False)"
    assert faults_of(harmless + "\nre.compile(x)\nmodel.eval()", "fftlm_jax/x.py") == []
    assert faults_of("import torch", "experiments/torch_peers.py") == []


IMPORT_ALL = """
import importlib, pkgutil, socket, sys

def refuse(*_, **__):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = socket.socket.bind = socket.create_connection = refuse
socket.getaddrinfo = refuse
import fftlm_jax
for module in pkgutil.walk_packages(fftlm_jax.__path__, "fftlm_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sys.modules, sep="\\n")
"""


def test_importing_everything_is_quiet():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert {"fftlm_jax.raft.run_cycles", "fftlm_jax.export", "fftlm_jax.evaluate"} <= modules
    roots = {module.split(".")[0] for module in modules}  # A part may stay where its root was taken away.
    assert not roots & {"tensorflow", "torch", "wandb", "clu", "dill", "cloudpickle", "requests"}
