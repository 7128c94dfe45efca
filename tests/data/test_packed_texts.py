"""Compressed files and files of documents: the same bytes as plain ones, whole documents on either side, no bombs."""

import bz2
import gzip
import json
import lzma
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fftlm_jax.data import formats, load_corpus
from fftlm_jax.data.unpacked import TextOptions
from fftlm_jax.runtime.errors import DataError, Interrupted
from fftlm_jax.runtime.process import Interrupts
from tests.tiny import write_words

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
DOCUMENTS = [f"document {i}\n{'x' * (i % 7)}é{i * i}" for i in range(300)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of what is unpacked, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fftlm_jax" / "texts"


def load(path, held_out=0.1, window=8, **options):
    return load_corpus("files", str(path), held_out, window=window, options=TextOptions(**options))


def sides(corpus, separator="\n\n"):
    """The documents of both sides, in order."""
    texts = (np.asarray(side).tobytes().decode() for side in (corpus.train, corpus.held_out))
    return tuple(text.removesuffix(separator).split(separator) for text in texts)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_is_split_like_the_plain_one(tmp_path, suffix):
    write_words(tmp_path / "words.txt")
    content = (tmp_path / "words.txt").read_bytes()
    halves = [content[:999], content[999:]]  # Files that were appended to each other are one text.
    (tmp_path / f"words.txt{suffix}").write_bytes(b"".join(map(COMPRESS[suffix], halves)))
    plain, packed = load(tmp_path / "words.txt"), load(tmp_path / f"words.txt{suffix}")
    assert packed.train.tobytes() == plain.train.tobytes() and packed.held_out.tobytes() == plain.held_out.tobytes()


def write_documents(file, documents):
    """Documents in the format that the file's name says."""
    lines = "\n".join(json.dumps({"text": text, "number": i}) for i, text in enumerate(documents)).encode()
    if file.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": documents}), file)
    elif file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, text in enumerate(documents):
                archive.writestr(f"{i:05}.txt", text)
            for name in (".git/objects/ab", "a/.hidden", "__MACOSX/._a"):
                archive.writestr(name, "no document")
    else:
        file.write_bytes(COMPRESS[file.suffix](lines) if file.suffix in COMPRESS else lines)


@pytest.mark.parametrize("name", ("d.jsonl", "d.ndjson", "d.jsonl.gz", "d.jsonl.zst", "d.parquet", "d.zip"))
def test_documents_stay_whole_on_the_side_that_their_content_decides(tmp_path, name):
    write_documents(tmp_path / name, DOCUMENTS + DOCUMENTS[:100])
    train, held = sides(load(tmp_path / name))
    assert sorted(train + held) == sorted(DOCUMENTS + DOCUMENTS[:100]), "each one, whole"
    assert not set(train) & set(held), "repeated ones are on one side"
    assert 0.05 < len(held) / 400 < 0.15
    write_documents(tmp_path / name, ["a new one", *reversed(DOCUMENTS)])
    assert set(sides(load(tmp_path / name))[1]) - {"a new one"} == set(held), "whatever comes, goes or moves"


@pytest.mark.parametrize("held_out", (1e-9, 1 - 1e-9))
def test_few_documents_leave_neither_side_empty_and_a_single_one_is_cut(tmp_path, held_out):
    write_documents(tmp_path / "two.jsonl", ["first document", "second document"])
    train, held = sides(load(tmp_path / "two.jsonl", held_out))
    assert sorted(train + held) == ["first document", "second document"] and len(train) == len(held) == 1
    write_documents(tmp_path / "one.jsonl", ["x" * 50 + "y" * 50])
    corpus = load(tmp_path / "one.jsonl", 0.5)
    assert (corpus.train.tobytes(), corpus.held_out.tobytes()) == (b"x" * 50, b"y" * 50)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=20), st.sampled_from("\n\0|é"))
def test_any_documents_come_back_through_any_separator(tmp_path_factory, documents, separator):
    folder = tmp_path_factory.mktemp("any")
    write_documents(folder / "d.jsonl.gz", documents)
    corpus = (
        load(folder / "d.jsonl.gz", window=0, separator=separator, cache=str(folder / "c")) if any(documents) else None
    )
    if corpus:
        both = corpus.train.tobytes() + corpus.held_out.tobytes()
        expected = [text.encode() for text in documents if text]
        lengths = sum(map(len, expected)) + (len(expected) if len(expected) > 1 else 0) * len(separator.encode())
        assert len(both) == lengths and all(text in both for text in expected)


def test_a_folder_may_hold_plain_and_packed_files(tmp_path):
    for i in range(20):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        (tmp_path / "mixed" / f"{i}.txt").write_bytes(bytes([i]) * 50)
    write_documents(tmp_path / "mixed" / "d.jsonl", DOCUMENTS)
    corpus = load(tmp_path / "mixed", held_out=0.3)
    assert len(corpus.train) + len(corpus.held_out) == 1000 + sum(len(text.encode()) + 2 for text in DOCUMENTS)
    assert "21 files" in corpus.description


def test_without_a_field_files_of_documents_are_bytes(tmp_path):
    write_documents(tmp_path / "d.jsonl", DOCUMENTS)
    corpus = load(tmp_path / "d.jsonl", text_field="")
    assert corpus.train.tobytes() + corpus.held_out.tobytes() == (tmp_path / "d.jsonl").read_bytes()


def test_a_text_is_unpacked_once_and_again_where_the_copy_is_damaged(tmp_path, cache, monkeypatch):
    write_documents(tmp_path / "d.jsonl.gz", DOCUMENTS)
    first = load(tmp_path / "d.jsonl.gz")
    (entry,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("fftlm_jax.data.unpacked._write_entry", None)  # Nothing is unpacked any more.
        assert load(tmp_path / "d.jsonl.gz").fingerprint == first.fingerprint
    content = bytearray((entry / "train").read_bytes())
    content[7] ^= 1
    (entry / "train").write_bytes(content)
    assert load(tmp_path / "d.jsonl.gz").fingerprint == first.fingerprint
    assert (
        load(tmp_path / "d.jsonl.gz", held_out=0.4).fingerprint != first.fingerprint and len(list(cache.iterdir())) == 2
    )


@pytest.mark.parametrize("suffix", (*COMPRESS, ".zip", ".parquet"))
def test_a_file_that_is_cut_short_or_none_of_its_kind_is_named_and_leaves_nothing(tmp_path, cache, suffix):
    for name, content in (("cut", None), ("none", b"plain text, whatever the name says " * 20)):
        file = tmp_path / f"{name}{suffix}"
        if content is None:
            write_documents(file, DOCUMENTS)
            content = file.read_bytes()[:-20]
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\{suffix} is damaged or not what its name says"):
            load(file)
    assert not cache.exists() or not list(cache.iterdir())


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(COMPRESS)),
    st.lists(st.binary(max_size=40) | st.integers(1, 3000).map(bytes), min_size=1, max_size=4),
    st.integers(0, 9),
    st.one_of(st.just(b""), st.binary(min_size=6, max_size=12).filter(lambda rest: rest[0])),
    st.integers(1, 9),
)
@example(".bz2", [b"words "], 0, b"trailing garbage", 9)
@example(".xz", [b"words "], 0, b"trailing garbage", 9)
@example(".zst", [b"words "], 64, b"", 9)
def test_streams_and_zeros_may_follow_a_stream_and_nothing_else(tmp_path_factory, suffix, texts, zeros, rest, piece):
    """However few bytes are read and expanded at a time."""
    file = tmp_path_factory.mktemp("streams") / f"a{suffix}"
    file.write_bytes(b"".join(COMPRESS[suffix](text) + bytes(zeros) for text in texts) + rest)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_PIECE", "_PACKED_PIECE", "_ZSTD_PIECE"):
            patch.setattr(formats, name, piece)
        found = formats.read_pieces(file, suffix, lambda count: None)
        if rest:
            with pytest.raises(DataError, match=rf"a\{suffix} is damaged or not what its name says"):
                list(found)
        else:
            pieces = list(found)
            assert b"".join(pieces) == b"".join(texts)
            assert suffix == ".zst" or max(map(len, pieces), default=0) <= piece


def write_zeros(file, size):
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(size))
    elif file.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": ["x" * 1000] * (size // 1000)}), file)
    else:
        file.write_bytes(COMPRESS[file.suffix](bytes(size)))


@pytest.mark.parametrize("suffix", (*COMPRESS, ".zip", ".parquet"))
def test_a_bomb_is_refused(tmp_path, cache, suffix):
    """150 MB out of some KB; what text needs is allowed many times over."""
    write_zeros(tmp_path / f"bomb{suffix}", 150_000_000)
    with pytest.raises(DataError, match=rf"bomb\{suffix} expands more than 100 times"):
        load(tmp_path / f"bomb{suffix}")
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(
    "line,message",
    (
        ('{"body": "x"}', "line 2 has no 'text' but body; set data.text_field"),
        ('{"text": 5}', "line 2: 'text' is 5 and no text"),
        ('["text"]', "line 2 is no JSON object"),
        ('{"text": "x"', "line 2 is no JSON object"),
        ("[" * 100_000, "line 2 is no JSON object"),
    ),
)
def test_a_line_that_is_no_document_is_named(tmp_path, line, message):
    (tmp_path / "d.jsonl").write_text('{"text": "good", "number": 1}\n' + line + '\n{"text": null}\n')
    with pytest.raises(DataError, match=message):
        load(tmp_path / "d.jsonl")


@pytest.mark.parametrize("encoding", ("utf-16", "utf-16-le", "utf-16-be", "utf-32"))
def test_lines_of_another_encoding_are_told_by_its_name(tmp_path, encoding):
    (tmp_path / "d.jsonl").write_bytes('{"text": "ä"}\n{"text": "b"}\n'.encode(encoding))
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(DataError, match=rf"d.jsonl is {name}; convert it to UTF-8 \(iconv -f {name} -t UTF-8\)"):
        load(tmp_path / "d.jsonl")


def test_a_line_in_latin_1_is_told_to_be_no_utf_8(tmp_path):
    (tmp_path / "d.jsonl").write_bytes('{"text": "good"}\n{"text": "ä"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"d.jsonl line 2 is not UTF-8 \(byte 0xe4\); convert it \(of Latin-1: iconv"):
        load(tmp_path / "d.jsonl")


@pytest.mark.parametrize("name", ("a.txt.gz", "a.jsonl.zst", "a.parquet", "b/a.zip"))
def test_what_is_packed_in_an_archive_once_more_is_refused_by_its_name(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("plain.txt", "a document")
        archive.writestr(name, os.urandom(99))
    with pytest.raises(DataError, match=f"d.zip holds '{name}', which is packed itself; unpack the archive"):
        load(tmp_path / "d.zip")


def test_what_a_run_writes_is_no_part_of_its_corpus(tmp_path):
    """Else the same command would find another corpus the next time."""
    (tmp_path / "texts").mkdir()
    write_documents(tmp_path / "texts" / "d.jsonl", DOCUMENTS)
    for inside in (tmp_path / "texts", tmp_path / "texts" / "a" / "cache"):
        with pytest.raises(
            DataError, match="data.cache: .* lies in the corpus .*; name a folder elsewhere or a hidden"
        ):
            load(tmp_path / "texts", cache=str(inside))
    assert [file.name for file in (tmp_path / "texts").iterdir()] == ["d.jsonl"]
    for apart in (tmp_path / "texts" / ".cache", tmp_path / "texts2"):
        first = load(tmp_path / "texts", cache=str(apart))
        assert load(tmp_path / "texts", cache=str(apart)).fingerprint == first.fingerprint and apart.is_dir()


TYPES_OF_TEXT = {
    "plain": pyarrow.string(),
    "large": pyarrow.large_string(),
    "a view": pyarrow.string_view(),
    "bytes": pyarrow.binary(),
    "large bytes": pyarrow.large_binary(),
    "a view of bytes": pyarrow.binary_view(),
    "a dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    "a dictionary of large ones": pyarrow.dictionary(pyarrow.int32(), pyarrow.large_string()),
}


@pytest.mark.parametrize("name", TYPES_OF_TEXT)
def test_a_column_of_any_type_of_text_is_read(tmp_path, name):
    kind, texts = TYPES_OF_TEXT[name], [*DOCUMENTS, None, ""]
    if "bytes" in name:
        texts = [text.encode() if text else text for text in texts]
    parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, kind)}), tmp_path / "d.parquet")
    train, held = sides(load(tmp_path / "d.parquet"))
    assert sorted(train + held) == sorted(DOCUMENTS)


def test_a_column_that_is_no_utf_8_is_read_as_it_is(tmp_path):
    column = pyarrow.array([b"first \xff", b"second \xfe"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "d.parquet")
    corpus = load(tmp_path / "d.parquet", window=4, separator="")
    assert {corpus.train.tobytes(), corpus.held_out.tobytes()} == {b"first \xff", b"second \xfe"}


def test_a_column_is_found_by_its_whole_name(tmp_path):
    """Parquet calls the field `b` of a struct `a` as it calls a column `a.b`."""
    structs = pyarrow.array([{"b": f"other {i}"} for i in range(300)])
    parquet.write_table(pyarrow.table({"a": structs, "a.b": DOCUMENTS}), tmp_path / "d.parquet")
    train, held = sides(load(tmp_path / "d.parquet", text_field="a.b"))
    assert sorted(train + held) == sorted(DOCUMENTS)
    twice = pyarrow.Table.from_arrays([pyarrow.array(DOCUMENTS)] * 2, names=["text", "text"])
    parquet.write_table(twice, tmp_path / "d.parquet")
    with pytest.raises(DataError, match="d.parquet has 2 columns 'text'; rename one"):
        load(tmp_path / "d.parquet")


def test_a_column_that_is_missing_or_no_text_is_named(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["a"], "number": [1]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="has no column 'text' but body, number; set data.text_field"):
        load(tmp_path / "d.parquet")
    with pytest.raises(DataError, match="column 'number' is int64 and no text"):
        load(tmp_path / "d.parquet", text_field="number")
    parquet.write_table(pyarrow.table({"text": [["a", "b"]]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="column 'text' is list<element: string> and no text"):
        load(tmp_path / "d.parquet")


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.zst").write_bytes(COMPRESS[".zst"](b"text"))
    with pytest.raises(DataError, match=r'need the package zstandard: pip install "fftlm_jax\[data\]"'):
        load(tmp_path / "a.zst")


def test_a_signal_ends_unpacking_and_nothing_half_done_stays(tmp_path, cache):
    write_documents(tmp_path / "d.jsonl.gz", DOCUMENTS)
    with Interrupts() as interrupts:
        interrupts.requested = 15
        with pytest.raises(Interrupted, match="stopped while") as stopped:
            load(tmp_path / "d.jsonl.gz")
    assert stopped.value.exit_code == 143 and not cache.exists()


def test_hidden_files_other_names_of_a_file_and_links_to_folders_are_left_out(tmp_path):
    folder = tmp_path / "corpus"
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "objects" / "ab").write_bytes(os.urandom(999))
    (folder / ".hidden").write_bytes(b"hidden")
    (folder / "a.txt").write_bytes(b"a" * 100)
    (folder / "b.txt").write_bytes(b"b" * 100)
    (folder / "again.txt").symlink_to(folder / "a.txt")
    (folder / "twin.txt").hardlink_to(folder / "b.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "broken").symlink_to(folder / "nowhere")
    corpus = load(folder)
    assert len(corpus.train) + len(corpus.held_out) == 200
    assert "(left out: 5 hidden, linked or repeated)" in corpus.description
    for name in ("a.txt", "again.txt", "b.txt", "twin.txt"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="holds hidden and linked ones alone"):
        load(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_what_is_no_text_is_told_before_training(tmp_path):
    rng = np.random.default_rng(0)
    content = {
        "noise.bin": (rng.bytes(99_999), "has 8.00 bits per byte, as compressed, encrypted or random data have"),
        "same.txt": (b"a" * 99_999, "is nearly constant"),
        "code.tgz": (gzip.compress(rng.bytes(9_999)), "code.tgz looks like gzip inside"),
        "book.pdf": (b"%PDF-1.7 " + b"words " * 9_999, "book.pdf looks like PDF inside"),
    }
    for name, (data, message) in content.items():
        (tmp_path / name).write_bytes(data)
        assert message in " ".join(load(tmp_path / name).warnings), name
    write_words(tmp_path / "words.txt")
    assert load(tmp_path / "words.txt").warnings == ()
    assert load_corpus("python_stdlib", "", 0.1, window=8).warnings == ()


def test_pointers_to_files_that_git_did_not_fetch_are_no_corpus(tmp_path):
    (tmp_path / "a.txt").write_bytes(POINTER)
    (tmp_path / "b.txt").write_bytes(POINTER)
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(DataError, match="is a Git LFS pointer and not the file itself; run `git lfs pull`"):
            load(path)
    write_words(tmp_path / "words.txt")
    assert "2 files are Git LFS pointers" in " ".join(load(tmp_path).warnings)


def test_what_is_unpacked_is_for_this_user_alone_whatever_the_umask_is(tmp_path, cache):
    write_documents(tmp_path / "d.jsonl.gz", DOCUMENTS)
    before = os.umask(0)
    try:
        load(tmp_path / "d.jsonl.gz")
    finally:
        os.umask(before)
    (entry,) = cache.iterdir()
    folders = [entry, *entry.parents][: len(entry.relative_to(tmp_path).parts)]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700} and tmp_path not in folders


def test_several_processes_may_unpack_the_same_text_at_once(tmp_path, cache):
    """Here threads; each finds the whole text, and nothing temporary stays."""
    write_documents(tmp_path / "d.jsonl.gz", DOCUMENTS)
    with ThreadPoolExecutor(4) as pool:
        fingerprints = list(pool.map(lambda _: load(tmp_path / "d.jsonl.gz").fingerprint, range(8)))
    assert len(set(fingerprints)) == 1
    assert len(list(cache.iterdir())) == 1


def test_another_process_may_finish_while_abandoned_folders_are_looked_for(tmp_path, cache):
    """Then its folder has another name by now; here a link to nowhere, which is listed and not found either."""
    write_documents(tmp_path / "d.jsonl.gz", DOCUMENTS)
    first = load(tmp_path / "d.jsonl.gz")
    (entry,) = cache.iterdir()
    entry.rename(tmp_path / "away")
    (cache / f"{entry.name}.abc").symlink_to("nowhere")
    assert load(tmp_path / "d.jsonl.gz").fingerprint == first.fingerprint
