"""Public texts from a server of this process: checked, resumed where they were cut off, and split as usual."""

import functools
import http.server
import threading
import zipfile

import numpy as np
import pytest

from fftlm_jax.data import download, load_corpus
from fftlm_jax.data.public_texts import PublicText
from fftlm_jax.data.unpacked import TextOptions
from fftlm_jax.runtime.errors import DataError
from fftlm_jax.runtime.untrusted import file_sha256

TEXT = b"".join(b"line %d of a public text\n" % i for i in range(20_000))


class Server(http.server.SimpleHTTPRequestHandler):
    """Answers ranges; `cut` is the number of bytes after which the next answer breaks off."""

    cut = 0
    ranges: list = []  # noqa: RUF012

    def do_GET(self):
        content = (self.server.folder / self.path.lstrip("/")).read_bytes()
        asked = self.headers.get("Range", "")
        Server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        rest = content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: Server.cut] if Server.cut else rest)
        Server.cut = 0

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `made_up` (zipped, 400,000 bytes for training, the next 50,000 held out) and `plain`."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "plain.txt").write_bytes(TEXT)
    with zipfile.ZipFile(folder / "text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text", TEXT)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    running.folder = folder
    address = f"http://127.0.0.1:{running.server_port}"
    sha256 = file_sha256(folder / "plain.txt")
    make = functools.partial(PublicText, size=len(TEXT), sha256=sha256, split="as made up")
    made_up = make(f"{address}/text.zip", is_zipped=True, borders=(400_000, 450_000))
    plain = make(f"{address}/plain.txt", is_zipped=False, borders=None)
    monkeypatch.setattr(download, "TEXTS", {"made_up": made_up, "plain": plain})
    monkeypatch.setattr("fftlm_jax.data.corpus.TEXTS", download.TEXTS)
    monkeypatch.setattr("fftlm_jax.data.public_texts.TEXTS", download.TEXTS)
    monkeypatch.setattr(Server, "cut", 0)
    monkeypatch.setattr(Server, "ranges", [])
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    thread.join()


def test_a_text_is_fetched_once_checked_and_split_as_usual(server, tmp_path):
    cache = tmp_path / "cache"
    options = TextOptions(cache=str(cache))
    with pytest.raises(DataError, match="made_up is not in .*; fetch it once with: fftlm download made_up"):
        load_corpus("made_up", "", 0.1, window=8, options=options)
    assert download.fetch("made_up", cache).read_bytes() == TEXT
    assert (cache / "made_up.test").read_bytes() == TEXT[450_000:]
    corpus = load_corpus("made_up", "", 0.1, window=8, options=options)
    assert np.asarray(corpus.train).tobytes() == TEXT[:400_000]
    assert np.asarray(corpus.held_out).tobytes() == TEXT[400_000:450_000]
    assert corpus.description.endswith("as made up")
    download.fetch("made_up", cache)
    assert len(Server.ranges) == 1 and sorted(file.name for file in cache.iterdir()) == ["made_up", "made_up.test"]


@pytest.mark.parametrize("name", ("plain", "made_up"))
def test_a_download_that_was_cut_off_is_resumed(server, tmp_path, monkeypatch, name):
    monkeypatch.setattr(download, "_PIECE", 1000)
    Server.cut = 5_500
    with pytest.raises(DataError, match=f"{name}: cannot be fetched from .*; run the command again"):
        download.fetch(name, tmp_path)
    assert (tmp_path / f"{name}.part").stat().st_size == 5_000 and not (tmp_path / name).exists()
    assert download.fetch(name, tmp_path).read_bytes() == TEXT
    assert Server.ranges == ["", "bytes=5000-"]


def test_another_text_than_was_promised_is_refused(server, tmp_path):
    with zipfile.ZipFile(server.folder / "text.zip", "w") as archive:
        archive.writestr("text", TEXT[:-1] + b"!")
    (server.folder / "plain.txt").write_bytes(TEXT[:-1] + b"!")
    for name in ("made_up", "plain"):
        with pytest.raises(DataError, match=f"{name}: cannot be fetched"):
            download.fetch(name, tmp_path)
        assert not (tmp_path / name).exists()


def test_a_server_that_cannot_be_reached_is_one_sentence(server, tmp_path, monkeypatch):
    gone = download.TEXTS["plain"]._replace(url="http://127.0.0.1:9/plain.txt")
    monkeypatch.setitem(download.TEXTS, "plain", gone)
    with pytest.raises(DataError, match="plain: cannot be fetched from http://127.0.0.1:9/plain.txt"):
        download.fetch("plain", tmp_path)
