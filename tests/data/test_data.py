"""Corpora and windows: every byte on one side, every step the same bytes, whatever the accumulation."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftlm_jax.data import BatchStages, TrainingWindows, evaluation_batches, load_corpus
from fftlm_jax.data.windows import permute
from fftlm_jax.optim import stage_schedule
from fftlm_jax.runtime.errors import DataError
from fftlm_jax.training.batches import Prefetcher


def load(path, held_out=0.1, window=8):
    return load_corpus("files", str(path), held_out, window=window)


def test_the_end_of_a_single_file_is_held_out(tmp_path):
    content = bytes(range(256)) * 4
    (tmp_path / "corpus.bin").write_bytes(content)
    corpus = load(tmp_path / "corpus.bin")
    assert corpus.train.tobytes() + corpus.held_out.tobytes() == content
    assert len(corpus.held_out) == round(0.1 * len(content))


def test_many_files_are_split_by_name_and_stay_on_their_side(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_bytes(bytes([i]) * 100)
    corpus = load(tmp_path, held_out=0.3)
    held, trained = set(corpus.held_out.tolist()), set(corpus.train.tolist())
    assert not held & trained and held | trained == set(range(40)) and 4 <= len(held) <= 20
    (tmp_path / "new.txt").write_bytes(b"\xff" * 100)
    assert held <= set(load(tmp_path, held_out=0.3).held_out.tolist()) <= held | {255}


@pytest.mark.parametrize("held_out", (0.001, 0.999))
def test_few_files_leave_neither_side_empty(tmp_path, held_out):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 100)
    corpus = load(tmp_path, held_out)
    assert len(corpus.train) == len(corpus.held_out) == 100


def test_globs_and_folders_find_the_same_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (tmp_path / name).write_bytes(name.encode() * 30)
    folder, pattern = load(tmp_path), load(f"{tmp_path}/**/*.txt")
    assert folder.fingerprint == pattern.fingerprint
    np.testing.assert_array_equal(folder.train, pattern.train)


def test_the_fingerprint_sees_contents_and_names_but_not_the_place(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            (tmp_path / folder / name).write_bytes(name.encode() * 100)
    first = load(tmp_path / "one").fingerprint
    assert load(tmp_path / "two").fingerprint == first
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "c")
    assert load(tmp_path / "two").fingerprint != first
    (tmp_path / "one" / "a").write_bytes(b"A" * 100)
    assert load(tmp_path / "one").fingerprint != first


def test_the_standard_library_needs_no_download():
    corpus = load_corpus("python_stdlib", "", 0.1, window=1024)
    assert len(corpus.train) > 5e6 and len(corpus.held_out) > 2e5
    assert b"def " in corpus.train[:100000].tobytes()


def test_binary_and_invalid_utf8_are_legal(tmp_path):
    (tmp_path / "x").write_bytes(b"\x00\xff\xfe\x80" * 100)
    assert load(tmp_path / "x").train[:4].tolist() == [0, 255, 254, 128]


@pytest.mark.parametrize(
    "case,content,message",
    (
        ("missing", None, "does not exist"),
        ("empty", b"", "is empty"),
        ("shorter than a window", b"abc", "3 bytes.*needs 8"),
        ("held-out part too short", b"a" * 40, "4 fall to the held-out part"),
    ),
)
def test_bad_corpora_are_refused_by_name(tmp_path, case, content, message):
    file = tmp_path / "corpus.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(file)
    assert str(file) in str(error.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no files"):
        load(tmp_path)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_permute_is_a_permutation(n, key):
    image = permute(np.arange(n), n, key)
    assert sorted(image.tolist()) == list(range(n))


def test_permutations_of_different_keys_differ_and_are_not_the_identity():
    images = [permute(np.arange(1000), 1000, key) for key in range(4)]
    for i, image in enumerate(images):
        assert (image == np.arange(1000)).mean() < 0.02
        assert all((image == other).mean() < 0.02 for other in images[:i])


@settings(max_examples=40, deadline=None)
@given(length=st.integers(9, 400), seq_len=st.integers(1, 8), chunk=st.integers(1, 1), seed=st.integers(0, 99))
def test_every_window_of_a_pass_lies_inside_and_is_disjoint(length, seq_len, chunk, seed):
    data = np.arange(length) % 256
    windows = TrainingWindows(data.astype(np.uint8), seq_len, chunk, seed)
    offsets = np.sort(windows.offsets(0, windows.per_pass))
    assert offsets[0] >= 0 and offsets[-1] + seq_len + chunk <= length
    assert (np.diff(offsets) == seq_len).all()
    assert windows.per_pass * seq_len > length - chunk - 2 * seq_len, "at most two windows are left out"


def test_passes_differ_in_order_and_phase():
    windows = TrainingWindows(np.zeros(10000, np.uint8), 16, 1, seed=3)
    passes = [windows.offsets(p * windows.per_pass, windows.per_pass) for p in range(6)]
    assert len({int(p[0]) % 16 for p in passes}) > 2
    assert (passes[0] // 16 == passes[1] // 16).mean() < 0.05


def test_accumulated_batches_see_the_bytes_of_one_large_batch():
    windows = TrainingWindows(np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8), 16, 4, seed=0)
    for step in (0, 7, 400):
        large = windows.batch(12 * step, 1, 12)
        np.testing.assert_array_equal(windows.batch(12 * step, 3, 4).reshape(1, 12, 20), large)
        np.testing.assert_array_equal(windows.batch(12 * step, 12, 1).reshape(1, 12, 20), large)


@settings(max_examples=40, deadline=None)
@given(
    step=st.integers(0, 500),
    micro_batches=st.integers(1, 3),
    rows_each=st.integers(1, 3),
    processes=st.sampled_from((1, 2, 4)),
)
def test_the_rows_of_all_processes_make_the_whole_batch(step, micro_batches, rows_each, processes):
    """However many processes there are, each reads its own rows, and all together see the same windows in order."""
    windows = TrainingWindows(np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8), 16, 4, seed=0)
    batch_size = processes * rows_each
    first = step * micro_batches * batch_size
    parts = [
        windows.batch(first, micro_batches, batch_size, slice(process * rows_each, (process + 1) * rows_each))
        for process in range(processes)
    ]
    assert {part.shape for part in parts} == {(micro_batches, rows_each, 20)}
    whole = windows.data[windows.offsets(first, micro_batches * batch_size)[:, None] + np.arange(20)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(-1, 20), whole)
    np.testing.assert_array_equal(windows.batch(first, micro_batches, batch_size).reshape(-1, 20), whole)


def test_the_rows_of_others_are_not_read():
    class Counted(np.ndarray):
        read = 0

        def __getitem__(self, where):
            Counted.read += 1
            return super().__getitem__(where)

    windows = TrainingWindows(np.zeros(3000, np.uint8).view(Counted), 16, 4, seed=0)
    windows.batch(0, micro_batches=3, batch_size=8, rows=slice(2, 4))
    assert Counted.read == 6


def test_windows_are_a_function_of_seed_and_step():
    data = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    first, second, other = (TrainingWindows(data, 16, 1, seed) for seed in (5, 5, 6))
    second.batch(99, 1, 4)
    np.testing.assert_array_equal(first.batch(3, 1, 4), second.batch(3, 1, 4))
    assert not np.array_equal(first.batch(3, 1, 4), other.batch(3, 1, 4))
    assert not np.array_equal(first.batch(3, 1, 4), first.batch(4, 1, 4))


def test_a_batch_is_what_lies_at_its_offsets():
    data = (np.arange(5000) % 251).astype(np.uint8)
    windows = TrainingWindows(data, 16, 4, seed=0)
    for window, offset in zip(windows.batch(6, 1, 3)[0], windows.offsets(6, 3), strict=True):
        np.testing.assert_array_equal(window, data[offset : offset + 20])


def test_evaluation_windows_join_without_gap_or_overlap():
    data = np.random.default_rng(0).integers(0, 256, 101).astype(np.uint8)
    targets = []
    for batch in evaluation_batches(data, 8, 4, batch_size=3):
        for window, valid in zip(batch.windows, batch.valid, strict=True):
            targets += window[1 : min(valid, 9)].tolist()
    assert targets == data[1:].tolist()


@pytest.mark.timeout(20)
def test_the_prefetcher_keeps_order_and_ends():
    prefetcher = Prefetcher(lambda step: np.full(2, step), first=5)
    assert [int(prefetcher.next()[0]) for _ in range(20)] == list(range(5, 25))
    prefetcher.close()
    assert not any(t.name == "prefetch" for t in threading.enumerate())


@pytest.mark.timeout(20)
def test_the_prefetcher_hands_errors_on():
    def make(step):
        raise OSError("gone")

    prefetcher = Prefetcher(make, first=0)
    with pytest.raises(OSError, match="gone"):
        prefetcher.next()
    prefetcher.close()


@pytest.mark.parametrize("multiples", ((1,), (1, 2, 3), (2, 2), (3, 1)))
def test_batch_stages_take_every_window_once_in_order(multiples):
    stages = BatchStages(accum_steps=2, multiples=multiples, total_steps=20)
    first = 0
    for step in range(25):
        assert stages.micro_batches_before(step) == first
        first += stages.micro_batches(step)
    schedule = stage_schedule(multiples, 20)
    assert [stages.micro_batches(step) for step in range(25)] == [2 * int(schedule(step)) for step in range(25)]
    changes = [step for step in range(25) if stages.changes_at(step)]
    assert changes == {(1, 2, 3): [6, 13], (3, 1): [10]}.get(multiples, [])
    assert stages.next_change(0) == (changes or [None])[0] and stages.next_change(13) is None
    assert stages.largest == 2 * max(multiples)


def test_the_order_of_a_pass_is_a_function_of_the_seed():
    """And not its phase alone."""
    first, other = (TrainingWindows(np.zeros(10000, np.uint8), 16, 1, seed) for seed in (5, 6))
    orders = [windows.offsets(0, windows.per_pass) // 16 for windows in (first, other)]
    assert (orders[0] == orders[1]).mean() < 0.05
