"""Bytes that stay in their files: those that an array would hold, few open files, and errors that name the file."""

import errno
import gc
import itertools
import os
import random
import resource
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.data import TrainingWindows, byte_sequence, bytes_of_files, evaluation_batches, load_corpus, windows_at
from fftlm_jax.evaluation.generated_text import find_copies
from fftlm_jax.runtime.errors import DataError
from fftlm_jax.training.batches import Prefetcher


def written(folder, sizes):
    """Files of random bytes, and all of those bytes."""
    rng = np.random.default_rng(len(sizes))
    contents = [rng.integers(0, 256, size).astype(np.uint8) for size in sizes]
    files = [Path(folder, f"part{number}") for number in range(len(sizes))]
    for file, content in zip(files, contents):
        file.write_bytes(content.tobytes())
    return files, np.concatenate([*contents, np.zeros(0, np.uint8)])


def in_files(folder, sizes):
    files, content = written(folder, sizes)
    return bytes_of_files(files, "data.path"), content


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=6), choices=st.data())
def test_slices_of_slices_are_those_of_an_array(sizes, choices):
    borders = st.none() | st.integers(-60, 60)
    with tempfile.TemporaryDirectory() as folder:
        data, expected = in_files(folder, sizes)
        for _ in range(3):
            assert len(data) == len(expected)
            np.testing.assert_array_equal(np.asarray(data), expected)
            start, stop = choices.draw(borders), choices.draw(borders)
            data, expected = data[start:stop], expected[start:stop]


def test_an_array_is_uint8_or_what_is_asked_for_and_never_shared(tmp_path):
    data, expected = in_files(tmp_path, [5, 6])
    assert np.asarray(data).dtype == np.uint8 and np.asarray(data, np.int32).dtype == np.int32
    np.testing.assert_array_equal(np.asarray(data, np.int32), expected)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(data, copy=False)
    with pytest.raises(ValueError, match="in steps of 1, not 2"):
        data[::2]


def test_whatever_reads_an_array_reads_files_alike(tmp_path):
    data, expected = in_files(tmp_path, [3000, 0, 5, 4000])
    offsets = np.array([0, 2990, 2999, 3004, 6950])
    rows = [expected[offset : offset + 50] for offset in offsets]
    np.testing.assert_array_equal(windows_at(data, offsets, 50), rows)
    for found, batch in zip(evaluation_batches(data, 32, 4, 3), evaluation_batches(expected, 32, 4, 3), strict=True):
        np.testing.assert_array_equal(found.windows, batch.windows)
        np.testing.assert_array_equal(found.valid, batch.valid)
    pieces = np.stack([expected[2980:3020], expected[4000:4040]])
    copies = find_copies(pieces, data, (16, 32))
    assert copies == find_copies(pieces, expected, (16, 32)) and copies.longest == 40


def test_reads_that_return_fewer_bytes_are_completed(tmp_path, monkeypatch):
    data, expected = in_files(tmp_path, [40, 50])
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, at: whole(descriptor, min(count, 7), at))
    np.testing.assert_array_equal(np.asarray(data[3:80]), expected[3:80])


def test_few_files_are_open_at_a_time_and_none_afterwards(tmp_path):
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    data, expected = in_files(tmp_path, [10] * 300)
    np.testing.assert_array_equal(np.asarray(data), expected)
    np.testing.assert_array_equal(windows_at(data, np.arange(2900, 0, -100), 20)[:, 0], expected[2900:0:-100])
    assert len(os.listdir("/dev/fd")) <= before + 64
    del data
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before


def test_threads_may_read_at_once(tmp_path, monkeypatch):
    """Each would close what another has just opened and not yet read."""
    monkeypatch.setattr(byte_sequence, "_MOST_OPEN", 1)
    data, expected = in_files(tmp_path, [100] * 8)
    at_once = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: (time.sleep(0.001), at_once(*arguments))[1])
    wrong = []

    def read(seed):
        for start in random.Random(seed).choices(range(700), k=20):
            try:
                if not np.array_equal(np.asarray(data[start : start + 100]), expected[start : start + 100]):
                    wrong.append(start)
            except DataError as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def closed(data):
    """What the next read opens again."""
    byte_sequence._close_all(data.files._open)
    data.files._open.clear()


def shorter(data, file):
    os.truncate(file, 60)


def empty(data, file):
    os.truncate(file, 0)


def another(data, file):
    closed(data)
    file.write_bytes(b"x" * 120)


def gone(data, file):
    closed(data)
    file.unlink()


def a_folder(data, file):
    gone(data, file)
    file.mkdir()


@pytest.mark.parametrize(
    "change,message",
    (
        (shorter, "had 100 bytes when it was first read and now has 60; bring the old bytes back"),
        (empty, "had 100 bytes when it was first read and now has 0"),
        (another, "had 100 bytes when it was first read and now has 120"),
        (gone, r"cannot be read \(No such file or directory\)"),
        (a_folder, "is not a regular file"),
    ),
)
def test_a_file_that_changes_is_named(tmp_path, change, message):
    data, expected = in_files(tmp_path, [100, 100, 100])
    change(data, tmp_path / "part1")
    for _ in range(2):  # Not the first time alone.
        with pytest.raises(DataError, match=f"data.path: {tmp_path}/part1 {message}"):
            np.asarray(data[90:210])
    np.testing.assert_array_equal(np.asarray(data[200:]), expected[200:])


def test_what_is_appended_to_an_open_file_does_no_harm(tmp_path):
    data, expected = in_files(tmp_path, [100, 100])
    with (tmp_path / "part0").open("ab") as file:
        file.write(b"more")
    np.testing.assert_array_equal(np.asarray(data), expected)


@pytest.mark.timeout(20)
def test_a_file_that_shrinks_during_training_is_an_error_of_the_next_batch(tmp_path, monkeypatch):
    """Through a memory map it would be the end of the process."""
    monkeypatch.setattr("fftlm_jax.data.corpus.MEMORY_LIMIT", 0)
    file = tmp_path / "corpus"
    file.write_bytes(bytes(1 << 20))
    windows = TrainingWindows(load_corpus("files", str(file), 0.1, window=20).train, 16, 4, seed=0)
    prefetcher = Prefetcher(lambda step: windows.batch(4 * step, 1, 4), first=0)
    prefetcher.next()
    os.truncate(file, 0)
    with pytest.raises(DataError, match=f"{file} had 1048576 bytes .* now has 0"):
        for _ in range(10):  # Some are made already.
            prefetcher.next()
    prefetcher.close()


@pytest.mark.parametrize("call,number", (("open", errno.EACCES), ("pread", errno.EIO)))
def test_an_unreadable_file_is_named(tmp_path, monkeypatch, call, number):
    (file,), _ = written(tmp_path, [10])

    def fails(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(DataError) as error:
        patch.setattr(os, call, fails)
        np.asarray(bytes_of_files([file], "data.path"))
    assert f"data.path: {file} cannot be read ({os.strerror(number)})" in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"--text: {tmp_path} is not a regular file"):
        bytes_of_files([tmp_path], "--text")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is not a regular file"):
        bytes_of_files([tmp_path / "pipe"], "--text")


def test_a_corpus_larger_than_memory_is_never_in_it(tmp_path):
    """A sparse file of 256 MiB, loaded, trained on and evaluated in 16 MiB (which Python and NumPy count)."""
    size, mark = 256 << 20, 180 << 20
    with (tmp_path / "corpus").open("wb") as file:
        file.truncate(size)
        file.seek(mark)
        file.write(b"here")
    tracemalloc.start()
    try:
        corpus = load_corpus("files", str(tmp_path / "corpus"), 0.1, window=1040)
        windows = TrainingWindows(corpus.train, 1024, 16, seed=0)
        for step in range(20):
            assert windows.batch(32 * step, 2, 16).shape == (2, 16, 1040)
        evaluated = list(evaluation_batches(corpus.held_out[: 1 << 20], 1024, 16, 8))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20 and len(evaluated) == 128
    assert len(corpus.train) + len(corpus.held_out) == size
    assert windows_at(corpus.train, np.array([mark - 1]), 6).tobytes() == b"\0here\0"


def test_a_process_that_may_open_few_files_reads_them_all(tmp_path):
    """As under `ulimit -n`: what is open is closed, and the file opened again."""
    for i in range(20):
        (tmp_path / f"{i:02}").write_bytes(bytes([i]) * 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir("/dev/fd")))
    free = (number for number in itertools.count() if number not in taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (list(itertools.islice(free, 5))[-1], hard))
    try:
        content = np.asarray(bytes_of_files(sorted(tmp_path.iterdir()), "data.path"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert content.tobytes() == b"".join(bytes([i]) * 10 for i in range(20))
