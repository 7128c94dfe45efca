"""What a fine-tuning run has done, phase by phase, so that it can be killed anywhere and goes on to the same result.

    cycles/0003/  plan.json samples.jsonl verdicts.jsonl kept.jsonl weights.npz result.json phases.json

A phase is done once `phases.json` lists its file with its SHA-256. Files appear whole or not at all; what is not listed
is made again, with the same random numbers. Cycle 0 is supervised fine-tuning. Bytes of text are stored as JSON strings
of the characters with their numbers (latin-1), so that ASCII stays readable and nothing is lost. No clock is ever read
here: equal runs have equal files.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fftlm_jax.checkpoints.run_directory import write_bytes, write_json
from fftlm_jax.raft.cycle_result import CycleResult
from fftlm_jax.runtime import faults
from fftlm_jax.runtime.errors import CheckpointError, SaveError
from fftlm_jax.runtime.untrusted import parse_json, read_bounded

_PHASES = "phases.json"
PLAN, KEPT, WEIGHTS, RESULT = "plan.json", "kept.jsonl", "weights.npz", "result.json"
STEPS = "steps/"  # Of the names in WEIGHTS, those that begin so are numbers of the training that made them.


class Journal:
    """The `cycles/` folder of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root / "cycles"

    def folder(self, cycle: int) -> Path:
        """Folder of a cycle."""
        return self.root / f"{cycle:04}"

    def once(self, cycle: int, name: str, make: Callable[[], bytes]) -> bytes:
        """Content of a phase's file: as it was written, or made and written now.

        Raises:
            SaveError: if it cannot be written.
        """
        folder = self.folder(cycle)
        known = self._phases(cycle)
        if name in known:
            content = _read(folder / name)
            if content is not None and _sha256(content) == known[name]:
                return content
        content = make()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(f"{folder} cannot be made ({error.strerror}).") from None
        write_bytes(folder / name, content)
        faults.point(f"raft_{Path(name).stem}", cycle)
        write_json(folder / _PHASES, {**known, name: _sha256(content)})
        return content

    def finished(self) -> int:
        """How many cycles are done, the supervised one (0) included, counted up to the first that is not.

        Raises:
            CheckpointError: naming a file of a finished cycle that is missing or changed; nothing was touched.
        """
        count = 0
        while self.has(count, RESULT):
            for name, digest in self._phases(count).items():
                content = _read(self.folder(count) / name)
                if content is None or _sha256(content) != digest:
                    raise CheckpointError(
                        f"{self.folder(count) / name} is missing or was changed since it was written; bring it "
                        f"back, or move cycles/{count:04} and later ones away to have them done again."
                    )
            count += 1
        return count

    def results(self) -> list[CycleResult]:
        """Results of the finished cycles, in order."""
        found = []
        while self.has(len(found), RESULT):
            file = self.folder(len(found)) / RESULT
            try:
                found.append(CycleResult.from_dict(parse_json(read_bounded(file))))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{file} cannot be read ({error}).") from None
        return found

    def read(self, cycle: int, name: str) -> bytes:
        """Content of a phase that is done.

        Raises:
            CheckpointError: if it is not, or its file was changed.
        """
        return self.once(cycle, name, lambda: _missing(self.folder(cycle) / name))

    def has(self, cycle: int, name: str) -> bool:
        """Whether a phase is done."""
        return name in self._phases(cycle)

    def weights(self, cycle: int) -> dict[str, np.ndarray]:
        """Weights or adapters that the training of a cycle left, by name."""
        arrays = arrays_of(self.read(cycle, WEIGHTS))
        return {name: array for name, array in arrays.items() if not name.startswith(STEPS)}

    def plan(self, cycle: int) -> dict[str, Any]:
        """The plan of a cycle, under way or done."""
        return parse_json(self.read(cycle, PLAN))

    def parent(self, cycle: int) -> int:
        """The cycle whose weights a cycle starts from."""
        return int(self.plan(cycle)["parent"])

    def digest(self, cycle: int, name: str) -> str:
        """SHA-256 of a finished phase's file."""
        return self._phases(cycle)[name]

    def _phases(self, cycle: int) -> dict[str, str]:
        file = self.folder(cycle) / _PHASES
        content = _read(file)
        if content is None:
            return {}
        try:
            phases = parse_json(content)
        except ValueError:
            phases = None
        if not isinstance(phases, dict) or not all(map(_is_file_name, phases)):
            raise CheckpointError(f"{file} cannot be read; move cycles/{cycle:04} and later ones away to redo them.")
        return phases


class PartFile:
    """Lines of a phase under way, batch by batch; a batch counts once all its lines are there.

    Each line begins with a digest of the rest, since no phase lists the file yet.

    Args:
        file: beside the phase's own.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> list[Any]:
        """The whole lines so far; one that is torn or was changed is left out, with all after it."""
        lines = (_read(self._file) or b"").split(b"\n")[:-1]
        found = []
        for line in lines:
            digest, _, row = line.partition(b" ")
            if digest != _short_digest(row):
                break
            found.append(json.loads(row))
        return found

    def restart(self, rows: Iterable[Any]) -> None:
        """Begins again with these rows."""
        write_bytes(self._file, _digested(rows))

    def append(self, rows: Iterable[Any]) -> None:
        """Adds rows at the end."""
        try:
            with self._file.open("ab") as file:
                file.write(_digested(rows))
        except OSError as error:
            raise SaveError(f"{self._file} cannot be written ({error.strerror}).") from None

    def remove(self) -> None:
        """Forgets all of it."""
        self._file.unlink(missing_ok=True)


def _digested(rows: Iterable[Any]) -> bytes:
    return b"".join(_short_digest(line) + b" " + line + b"\n" for line in lines_of(rows).splitlines())


def _short_digest(line: bytes) -> bytes:
    return _sha256(line)[:16].encode()


def lines_of(rows: Iterable[Any]) -> bytes:
    """Rows as JSON, one a line."""
    return b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows)


def rows_of_lines(content: bytes) -> list[Any]:
    """The inverse of `lines_of`."""
    return [json.loads(line) for line in content.splitlines()]


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """One object as JSON text."""
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


def text_of(data: bytes) -> str:
    """Bytes as a JSON string."""
    return data.decode("latin-1")


def bytes_of(text: str) -> bytes:
    """The inverse of `text_of`."""
    return text.encode("latin-1")


def array_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Named arrays as an .npz file, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.asarray(array) for name, array in sorted(arrays.items())})
    return buffer.getvalue()


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """The inverse of `array_bytes`.

    Raises:
        ValueError: if the content is no such file, or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, which a few bytes could make an array of any size of")
            return {
                member.filename.removesuffix(".npy"): _array_of(archive.read(member)) for member in archive.infolist()
            }
    except Exception as error:  # Whatever damage brings the reader of archives to.
        raise ValueError(f"not a file of arrays: {error}") from None


def _array_of(content: bytes) -> np.ndarray:
    """An array from an .npy file, which must hold as many bytes as it declares: it is not believed before."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another version")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    begin = file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - begin:
        raise ValueError("an array that is not as it says")
    flat = np.frombuffer(content, dtype, offset=begin) if math.prod(shape) else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _missing(file: Path) -> bytes:
    raise CheckpointError(f"{file} is missing or was changed since it was written.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
