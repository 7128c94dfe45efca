"""What a corpus is, wherever it is kept: compared with an oracle that reads all files and joins them."""

import hashlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from fftlm_jax.data import FileBytes, TrainingWindows, load_corpus
from fftlm_jax.runtime.errors import DataError

NAMES = ("0", "a", "a.txt", "a/b", "a/b.txt", "ab", "c/d/e", "é", "z 1")


def oracle(contents, held_out):
    """Training bytes, held-out bytes and fingerprint of {name: bytes}."""
    names = sorted(contents)
    text = b"".join(f"{name}\0{len(contents[name])}\0".encode() + contents[name] for name in names)
    if len(names) == 1:
        (whole,) = contents.values()
        cut = len(whole) - round(len(whole) * held_out)
        return whole[:cut], whole[cut:], hashlib.sha256(text).hexdigest()
    places = {name: int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64 for name in names}
    held = [name for name in names if places[name] < held_out] or [min(names, key=places.get)]
    if len(held) == len(names):
        held.remove(max(names, key=places.get))
    train = b"".join(contents[name] for name in names if name not in held)
    return train, b"".join(contents[name] for name in held), hashlib.sha256(text).hexdigest()


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from(NAMES), st.sampled_from((0, 1, 3, 17, 60)) | st.integers(0, 90), min_size=1),
    held_out=st.sampled_from((0.1, 0.3, 0.5)),
    seq_len=st.integers(1, 12),
    seed=st.integers(0, 9),
    in_memory=st.booleans(),
)
@example({"a": 1, "a.txt": 0, "a/b": 2, "ab": 70, "é": 3, "z 1": 90}, 0.3, 12, 0, False)
def test_a_corpus_is_its_files_one_behind_the_other(sizes, held_out, seq_len, seed, in_memory):
    if "a" in sizes:  # No file and folder of one name.
        sizes = {name.replace("a/", "b/"): size for name, size in sizes.items()}
    rng = np.random.default_rng(seed)
    contents = {name: rng.bytes(size) for name, size in sizes.items()}
    train, held, fingerprint = oracle(contents, held_out)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, content in contents.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        patch.setattr("fftlm_jax.data.corpus._CHUNK", 32)
        patch.setattr("fftlm_jax.data.corpus.MEMORY_LIMIT", 10**6 if in_memory else 0)
        if min(len(train), len(held)) < seq_len + 1:
            with pytest.raises(DataError, match="is empty|but a window needs"):
                load_corpus("files", folder, held_out, window=seq_len + 1)
            return
        corpus = load_corpus("files", folder, held_out, window=seq_len + 1)
        assert isinstance(corpus.train, np.ndarray if in_memory else FileBytes)
        assert np.asarray(corpus.train).tobytes() == train and np.asarray(corpus.held_out).tobytes() == held
        assert corpus.fingerprint == fingerprint
        assert f"{len(train):,} bytes for training, {len(held):,} held out" in corpus.description
        windows = TrainingWindows(corpus.train, seq_len, 1, seed)
        for step in range(4):
            offsets = windows.offsets(6 * step, 6)
            expected = [list(train[offset : offset + seq_len + 1]) for offset in offsets]
            assert windows.batch(6 * step, 2, 3).reshape(6, -1).tolist() == expected


def test_a_fingerprint_stays_what_it_was(tmp_path):
    """Runs that were begun by earlier versions are compared by it."""
    (tmp_path / "one").write_bytes(b"some bytes" * 20)
    (tmp_path / "two").write_bytes(b"\0\xff" * 50)
    found = load_corpus("files", str(tmp_path), 0.1, window=8).fingerprint
    assert found == "c94b3f9a683f48b117f0cb72b50da3116fe3c1029a663f9da0a9950151b870f4"


def test_reading_a_corpus_shows_how_far_it_is(tmp_path, monkeypatch, capsys):
    """By a bar on a terminal, by a line now and then elsewhere, by nothing where it takes no time."""
    (tmp_path / "one").write_bytes(b"some bytes" * 20)
    (tmp_path / "two").write_bytes(b"\0\xff" * 50)
    load_corpus("files", str(tmp_path), 0.1, window=8)
    assert capsys.readouterr() == ("", "")
    with monkeypatch.context() as patch:
        patch.setattr("fftlm_jax.data.unpacked._SECONDS", 0.0)
        load_corpus("files", str(tmp_path), 0.1, window=8)
        assert capsys.readouterr() == ("reading the corpus: 67%\nreading the corpus: 100%\n", "")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    at_once = lambda **options: tqdm(**{**options, "delay": 0, "leave": True, "file": terminal})
    monkeypatch.setattr("fftlm_jax.data.unpacked.tqdm", at_once)
    monkeypatch.setattr("fftlm_jax.data.unpacked.is_terminal", lambda stream: True)
    load_corpus("files", str(tmp_path), 0.1, window=8)
    assert "reading the corpus: 100%" in terminal.getvalue() and "300/300" in terminal.getvalue()
