"""Row 29: compiled programs between processes. Damaged, foreign or unfinished entries cost a compilation, no more."""

import os
import stat
import subprocess
import sys

import pytest

from fftlm_jax.runtime import compile_cache
from tests.tiny import ROOT, tiny_values

# Compiles one program again and again in one process, over a cache that is damaged in between.
PROGRAM = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
from fftlm_jax.runtime import compile_cache
compile_cache.use(str(folder), {})
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from jax._src import compilation_cache
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.rsplit("/", 1)[-1]))

def outcome():
    jax.clear_caches()
    compilation_cache.reset_cache()
    hits.clear()
    f = jax.jit(lambda x: jnp.tanh(x @ x.T).sum(0))
    value = f(jnp.linspace(-1, 1, 4096).reshape(64, 64))
    compile_cache.seal(folder)
    return value.tobytes().hex()[:64], "cache_hits" in hits

plain = outcome()
print("first", plain[1])
assert outcome() == (plain[0], True)
for name in ("flipped", "cut", "empty", "foreign", "unsealed"):
    for entry in folder.glob("*-cache"):
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        others = {"cut": content[: len(content) // 2], "flipped": content, "empty": b"", "foreign": os.urandom(999)}
        if name in others:
            entry.write_bytes(others[name])
        else:
            entry.with_name(entry.name + ".sha256").unlink()
    removed = compile_cache.sweep(folder)
    value, hit = outcome()
    print(name, removed > 0, value == plain[0], hit)
    assert outcome() == (plain[0], True), "it was compiled once and is kept again"
"""


def test_damaged_entries_are_compiled_again_to_the_same_results(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS")) and k != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "cache")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["first", "False"] and len(rows) == 6
    for name, removed, same, hit in rows[1:]:
        assert (removed, same, hit) == ("True", "True", "False"), name
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


@pytest.fixture
def updates(monkeypatch):
    """What is set in JAX, which is left alone."""
    import jax

    found = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: found.update({name: value}))
    monkeypatch.setattr(jax.monitoring, "register_event_listener", lambda listener: None)
    monkeypatch.setattr(compile_cache.atexit, "register", lambda *_: None)
    return found


@pytest.mark.parametrize(
    "setting,environment",
    (("", {}), ("auto", {"CI": "true"}), ("auto", {"JAX_COMPILATION_CACHE_DIR": "/x"}), ("x", {"CI": "1"})),
)
def test_where_it_is_off(updates, tmp_path, monkeypatch, setting, environment):
    monkeypatch.chdir(tmp_path)
    compile_cache.use(setting, {"XDG_CACHE_HOME": str(tmp_path), **environment})
    assert updates == {} and list(tmp_path.iterdir()) == []


def test_where_it_is_by_itself(updates, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    compile_cache.use("auto", environment)
    folder = compile_cache.default_folder(environment)
    assert updates["jax_compilation_cache_dir"] == str(folder) and folder.parent == tmp_path / "fftlm_jax"
    assert folder.name.startswith("jax0.") and folder.name.endswith("-cpu") and "-jaxlib0." in folder.name
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_a_folder_that_others_can_write_or_nobody_can_is_not_used(updates, tmp_path, capsys):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    compile_cache.default_folder(environment).mkdir(parents=True)
    compile_cache.default_folder(environment).chmod(0o777)
    compile_cache.use("auto", environment)
    (tmp_path / "file").write_text("x")
    compile_cache.use(str(tmp_path / "file" / "cache"), {})
    compile_cache.use("/proc/cache", {})
    assert updates == {}
    assert capsys.readouterr().err.count("cannot keep compiled programs") == 3


def test_the_oldest_of_too_many_go(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "_LARGEST_BYTES", 250)
    for age in range(4):
        entry = tmp_path / f"program{age}-cache"
        entry.write_bytes(bytes(100))
        os.utime(entry, (1e9 - age, 1e9 - age))
    compile_cache.seal(tmp_path)
    assert compile_cache.sweep(tmp_path) == 0, "none of them was damaged"
    assert sorted(p.name for p in tmp_path.glob("*-cache")) == ["program0-cache", "program1-cache"]


def test_the_key_is_no_part_of_what_a_run_is():
    from fftlm_jax.config.reading import changes_of, read_config, to_dict

    assert changes_of(to_dict(read_config(tiny_values())), read_config(tiny_values(compile_cache=""))) == {}
