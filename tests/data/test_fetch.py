"""Downloads: whole or not at all, from a server that does what it is told on this machine."""

import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pyro_mm.data import fetch
from pyro_mm.data.fetch import fetched, unpacked

BODY = b"0123456789" * 1000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:4000] if self.path == "/short" else BODY)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "new" / "file"
    server.asked.clear()
    digests = {"md5": hashlib.md5(BODY).hexdigest(), "sha256": hashlib.sha256(BODY).hexdigest()}
    for _ in range(2):
        assert fetched(f"{server.url}/a", path, len(BODY), **digests) == path
        assert path.read_bytes() == BODY
    assert server.asked == ["/a"]
    assert fetched(f"{server.url}/unsized", tmp_path / "other", len(BODY)).read_bytes() == BODY


@pytest.mark.parametrize(
    ("page", "options", "error", "message"),
    [
        ("absent", {}, RuntimeError, r"/absent could not be downloaded: .*\nWithout a network, copy file to a folder"),
        ("short", {}, ValueError, "/short: the connection ended after 4000 of 10000 bytes"),
        ("a", {"most": 9999}, ValueError, "it has 10000 bytes, at most 9999 expected"),
        ("unsized", {"most": 9999}, ValueError, "it has more than 9999 bytes"),
        ("a", {"md5": "0" * 32}, ValueError, "/a is not the original file: its md5 is [0-9a-f]{32}, expected 000"),
        ("a", {"sha256": "0" * 64}, ValueError, "its sha256 is [0-9a-f]{64}, expected 000"),
        ("a", {"decode": lambda _: unpacked(b"\x1f\x8b")}, ValueError, "/a: truncated or corrupt"),
    ],
)
def test_failures_leave_nothing(server, tmp_path, page, options, error, message):
    options = {"most": len(BODY), **options}
    with pytest.raises(error, match=message):
        fetched(f"{server.url}/{page}", tmp_path / "file", **options)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_cure_is_named(tmp_path, monkeypatch):
    def nobody(*_, **__):
        raise fetch.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", nobody)
    with pytest.raises(RuntimeError, match=r"x could not be downloaded: Name or service not known\n.*pass root=that"):
        fetched("https://example.org/x", tmp_path / "file", 10)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_leave_a_whole_file(server, tmp_path):
    path, found = tmp_path / "file", []

    def one():
        found.append(fetched(f"{server.url}/a", path, len(BODY)).read_bytes() == BODY)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [True] * 6 and list(tmp_path.iterdir()) == [path]


def test_unpacking_is_told_by_content():
    assert unpacked(gzip.compress(BODY)) == BODY and unpacked(BODY) == BODY
    aaaa = bytes([0x1F, 0x9D, 0x90]) + (97 | 257 << 9 | 97 << 18).to_bytes(4, "little")
    assert unpacked(aaaa) == b"aaaa"
    for damaged in (gzip.compress(BODY)[:-9], aaaa[:2]):
        with pytest.raises(ValueError):
            unpacked(damaged)
