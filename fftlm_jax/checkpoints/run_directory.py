"""What a run leaves on disk, where, and who may write there.

config.json env.json metrics.jsonl curves.png samples.txt run.log tensorboard/ checkpoints/<step>/ quarantine/
"""

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax

try:
    import fcntl
except ImportError:  # On Windows: runs are not locked there, and say so.
    fcntl = None

import fftlm_jax
from fftlm_jax.config.reading import differences
from fftlm_jax.config.schema import with_later_keys
from fftlm_jax.runtime import matrix_units
from fftlm_jax.runtime.errors import CheckpointError, InUseError, SaveError, UsageError
from fftlm_jax.runtime.jax_settings import recorded_settings
from fftlm_jax.runtime.paths import local_path
from fftlm_jax.runtime.untrusted import read_json_object, require_contained

_RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")
EXPORT_FORMAT = "fftlm_jax export"  # What `config.json` says in the folder of an exported model.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # What `flock` says where there are none.


class RunDirectory:
    """Paths of one run, and the lock that keeps a second process out."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = local_path(root, "--workdir").resolve()
        self.config = self.root / "config.json"
        self.env = self.root / "env.json"
        self.metrics = self.root / "metrics.jsonl"
        self.curves = self.root / "curves.png"
        self.samples = self.root / "samples.txt"
        self.log = self.root / "run.log"
        self.tensorboard = self.root / "tensorboard"
        self.checkpoints = self.root / "checkpoints"
        self.profile = self.root / "profile"
        self.notes: list[str] = []  # Sentences for whoever started the run.
        self._lock: IO[str] | None = None

    def require_usable(self, mode: str) -> None:
        """Refuses, before anything is compiled or written, a folder that `resume.mode` does not allow.

        Raises:
            UsageError, CheckpointError: saying what is in the way and what to do.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--workdir: {self.root} is a file; name a folder.")
        entries = self._entries()
        if mode == "must" and not self.has_config:
            raise CheckpointError(
                f"resume.mode=must: {self.root} holds no run to resume; drop the option to start one."
            )
        if mode == "never" and entries:
            raise UsageError(
                f"resume.mode=never: {self.root} is not empty; name another --workdir or pass --overwrite."
            )
        if entries and not self.has_config:
            raise UsageError(f"--workdir: {self.root} holds files but no run; name another folder or pass --overwrite.")

    def _entries(self) -> list[Path]:
        return [p for p in self.root.iterdir() if p.name not in ("lock", "lock.tmp")] if self.root.is_dir() else []

    @property
    def has_config(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    def move_aside(self) -> Path | None:
        """Renames an existing run to the first free `<name>.1`, `<name>.2`, ...; returns where it went.

        Raises:
            UsageError: for anything but a run or an empty folder. InUseError: if a process works in it.
        """
        if not self.root.exists():
            return None
        if not self.root.is_dir() or (self._entries() and not self.has_config):
            raise UsageError(f"--overwrite: {self.root} holds no run and will not be moved; name another --workdir.")
        self.acquire()
        n = 1
        while (target := self.root.with_name(f"{self.root.name}.{n}")).exists():
            n += 1
        self.root.rename(target)
        self.release()
        return target

    @contextlib.contextmanager
    def taken(self, overwrite: bool) -> Iterator[Path | None]:
        """Context manager: the folder is this process's; yields where an old run was moved, if `overwrite` moved one.

        Raises:
            RunError: see `move_aside` and `acquire`.
        """
        moved_to = self.move_aside() if overwrite else None
        self.acquire()
        try:
            yield moved_to
        finally:
            self.release()

    def acquire(self) -> None:
        """Creates the folder, proves it writable and takes its lock, which the system frees when the process ends.

        The lock is `flock`: gone with its process, also after a crash or a reboot, whatever the file says. On NFS it
        holds between hosts where the server has a lock manager. A file system without locks (some of clusters) and a
        system without `flock` (Windows) cannot keep a second process out; `notes` then says so.

        Raises:
            SaveError: if it cannot be written. InUseError: naming the process that holds it. CheckpointError: if a
                link in it leads elsewhere.
        """
        require_contained(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                lock = stack.enter_context(open(self.root / "lock", "a+"))
                self._take(lock)
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on host {platform.node()}")
                lock.flush()
                probe = self.root / "lock.tmp"  # The lock may be writable where new files are not.
                probe.touch()
                probe.unlink()
                stack.pop_all()  # Held until it is released.
                self._lock = lock
        except OSError as error:
            raise SaveError(
                f"--workdir: {self.root} cannot be written ({error.strerror}); name another folder."
            ) from None

    def _take(self, lock: IO[str]) -> None:
        if fcntl is None:
            self.notes.append("WARNING: run directories are not locked on this system: start no second process in one")
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise InUseError(f"{self.root} is in use by {holder}; wait for it or name another --workdir.") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.notes.append(f"WARNING: {self.root} is on a file system without locks: start no second process in it")

    def release(self) -> None:
        """Frees the lock."""
        if self._lock is not None:
            with contextlib.suppress(OSError), self._lock:
                self._lock.truncate(0)  # Nobody's any more, and no place for a host's name.
            self._lock = None

    def read_config(self) -> dict[str, Any]:
        """The config that the run was started with.

        Raises:
            CheckpointError: if it cannot be read, or a link in the folder leads elsewhere. UsageError: for an export.
        """
        require_contained(self.root)
        try:
            values = read_json_object(self.config)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.config} cannot be read ({error}); restore it or pass --overwrite.") from None
        if values.get("format") == EXPORT_FORMAT:
            raise UsageError(
                f"{self.root} is a model that `fftlm export` wrote; fftlm_jax.export.load_exported reads it (see its "
                "README.md), and no command does: name the run directory that it was exported from."
            )
        return with_later_keys(values)

    def write_config(self, values: dict[str, Any]) -> None:
        """Stores the config as JSON."""
        write_json(self.config, values)

    def written_by(self) -> str:
        """The version of this package that last wrote here."""
        try:
            return str(json.loads(self.env.read_text())["fftlm_jax"])
        except (OSError, ValueError, KeyError, TypeError):
            return "of an unknown version"

    def write_env(self) -> dict[str, tuple[Any, Any]]:
        """Stores versions, devices and XLA flags (they change bits); no paths, no host names.

        Returns:
            What differs from the environment of the process before, as name -> (old, new).
        """
        now = environment()
        try:
            before = read_json_object(self.env)
        except (OSError, ValueError):
            before = now
        write_json(self.env, now)
        changed = differences(before, now)
        # An earlier version may not have recorded everything.
        return {name: pair for name, pair in changed.items() if name.split(".")[0] in before}


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes JSON as `write_bytes` does."""
    write_bytes(file, (json.dumps(values, indent=2) + "\n").encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Writes a file so that it is complete or unchanged, also after a power cut.

    Raises:
        SaveError: if it cannot be written.
    """
    temporary = file.with_name(file.name + ".tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.rename(file)
        sync_folder(file.parent)
    except OSError as error:
        raise SaveError(f"{file} cannot be written ({error.strerror}).") from None


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to disk: a file that was renamed into it then survives a power cut by that name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some file systems cannot do this for folders, and need not.
            raise
    finally:
        os.close(handle)


def environment() -> dict[str, Any]:
    """What a run's numbers depend on besides its config."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "fftlm_jax": fftlm_jax.__version__,
        "packages": {name: importlib.metadata.version(name) for name in _RECORDED_PACKAGES},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "matrix_units": matrix_units.matrix_units(device.platform),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **recorded_settings(),
        "byte_order": sys.byteorder,
    }
