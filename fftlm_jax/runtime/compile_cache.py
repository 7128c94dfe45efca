"""A cache of compiled programs between processes, so that a resumed run does not compile again what it had compiled.

JAX keeps it; here is decided where, and that a damaged entry is never loaded: JAX writes entries in place and checks
at most their compression, so each is sealed with its SHA-256, and entries without the right seal are deleted before JAX
looks. Entries are as good as code, hence a folder that nobody else can write. Programs depend on the versions of jax
and on the features of the processor, hence its name.
"""

import atexit
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from fftlm_jax.runtime.errors import UsageError
from fftlm_jax.runtime.paths import local_path, make_private, user_cache
from fftlm_jax.runtime.streams import print_error
from fftlm_jax.runtime.untrusted import file_sha256

OFF, AUTO = "", "auto"
_LARGEST_BYTES = 2**28  # Beyond this the oldest entries go: all are read when a process starts.
_SHORTEST_SECONDS = 0.5  # Compilations that take less are not worth a file.


def use(setting: str, environment: Mapping[str, str]) -> None:
    """Has JAX keep compiled programs, unless `environment` has CI or a cache of the user's own.

    To be called before anything is compiled. A folder that cannot be used is a warning.

    Args:
        setting: the config's `compile_cache`: `auto`, a folder, or "" for no cache.
        environment: of the process.
    """
    if not is_on(setting, environment) or environment.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        folder = folder_of(setting, environment)
    except UsageError as error:
        print_error(f"WARNING: {error} Compiled programs are not kept.")
        return
    try:
        make_private(folder)
        if setting == AUTO:
            _require_private(folder)
        removed = sweep(folder)
        probe = folder / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        print_error(f"WARNING: {folder} cannot keep compiled programs ({error.strerror}); they are not kept.")
        return
    if removed:
        print_error(f"WARNING: {folder}: {removed} unfinished or damaged entries were deleted.")
    import jax  # Late: main.py sets XLA's flags first.

    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in environment:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_SECONDS)
    jax.monitoring.register_event_listener(lambda event, **_: seal(folder) if event.endswith("/cache_misses") else None)
    atexit.register(seal, folder)


def is_on(setting: str, environment: Mapping[str, str]) -> bool:
    """Whether the config's `compile_cache` asks for what was compiled to be kept; in CI nothing is."""
    return setting != OFF and not environment.get("CI")


def folder_of(setting: str, environment: Mapping[str, str]) -> Path:
    """The folder that the config's `compile_cache` names.

    Raises:
        UsageError: if it is no path of this machine.
    """
    return default_folder(environment) if setting == AUTO else local_path(setting, "compile_cache").resolve()


def default_folder(environment: Mapping[str, str]) -> Path:
    """The folder in which `auto` keeps programs of this jax, this kind of processor and this platform."""
    versions = "-".join(f"{name}{importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
    kind = environment.get("JAX_PLATFORMS") or "default"
    return user_cache(environment).resolve() / "fftlm_jax" / f"{versions}-{_processor()}-{kind.replace(',', '+')}"


def seal(folder: Path) -> None:
    """Notes the SHA-256 of every entry that has none yet."""
    for entry in _entries(folder):
        note = _seal_of(entry)
        try:
            if not note.exists():
                note.write_text(file_sha256(entry))
        except OSError:
            continue  # Another process deleted it, or the disk is full: it will be compiled again.


def sweep(folder: Path) -> int:
    """Deletes entries whose bytes are not those that were sealed, and the oldest of too many; returns how many of the
    first kind there were."""
    removed, kept = 0, 0
    for entry in sorted(_entries(folder), key=lambda e: e.stat().st_mtime_ns, reverse=True):
        note = _seal_of(entry)
        is_whole = note.is_file() and note.read_text(errors="replace") == file_sha256(entry)
        kept += entry.stat().st_size
        if not is_whole or kept > _LARGEST_BYTES:
            entry.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            removed += not is_whole
    return removed


def _entries(folder: Path) -> list[Path]:
    return list(folder.glob("*-cache"))


def _seal_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.sha256")


def _require_private(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(0, "others can write it")


def _processor() -> str:
    """A short hash of the processor's model and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        text = "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
    except OSError:
        text = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {text}".encode()).hexdigest()[:12]
