"""Images by web address, from a server of this machine; and what servers do wrong."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading

import cv2
import numpy as np
import pytest

from densekit import Predictor
from densekit.data.images import web
from densekit.data.images.read import read_image
from densekit.errors import DensekitError
from tests.tools import runs


def picture():
    return cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8), (56, 40))


class Server(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012  of the class on purpose

    def do_GET(self):
        self.asked.append(self.path)
        data = cv2.imencode(".png", picture()[..., ::-1])[1].tobytes()
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if self.path == "/none.png":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/short.png":
            self.send_header("Content-Length", str(len(data) + 9))
        self.end_headers()
        if self.path == "/text.png":
            data = b"<html><body>log in first</body></html>"
        if self.path == "/large.png":
            data = bytes(web.MOST_BYTES + 1)
        with contextlib.suppress(OSError):
            self.wfile.write(b"" if self.path == "/empty.png" else data)

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture(scope="module")
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses_are_predicted_and_bad_ones_skipped_and_named(host, checkpoints, tmp_path):
    (tmp_path / "list.txt").write_text(f"{host}/moved.png\n# none\n{host}/b.png?size=3\n")
    inputs = [f"{host}/a.png", f"{host}/none.png", f"{host}/text.png", tmp_path / "list.txt"]
    code, printed = runs.call("predict", checkpoints["detection"], *inputs, "--out", tmp_path / "out", "data.workers=0")
    assert code == 3, printed
    assert f"{host}/none.png: the server says 404 Not Found; correct the address" in printed
    assert f"{host}/text.png: not an image: it is a web page" in printed
    rows = json.loads((tmp_path / "out/images.json").read_text())
    assert [r["file_name"] for r in rows] == [f"{host}/a.png", f"{host}/moved.png", f"{host}/b.png?size=3"]
    assert [(r["height"], r["width"]) for r in rows] == [(40, 56)] * 3
    assert len(list((tmp_path / "out/pictures").iterdir())) == 3
    assert Server.asked.count("/b.png?size=3") == 1, "fetched once, although it is drawn too"


def test_pixels_are_those_of_the_file(host, checkpoints):
    assert np.array_equal(web.fetch(f"{host}/a.png"), web.fetch(f"{host}/moved.png"))
    result = Predictor(checkpoints["classification"])(f"{host}/a.png")
    assert result.names == Predictor(checkpoints["classification"])(picture()).names
    assert web.address(web.Path(f"{host}/a.png")) == f"{host}/a.png"
    assert np.array_equal(read_image(web.Path(f"{host}/a.png")), picture())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/short.png", "cut off after|can't be fetched"),
        ("/empty.png", "cut off after 0 bytes"),
        ("/large.png", "more than 1 MiB"),
    ],
)
def test_what_comes_in_another_way_is_one_line(host, path, words, monkeypatch):
    monkeypatch.setattr(web, "MOST_BYTES", 2**20)
    with pytest.raises(DensekitError, match=words) as error:
        web.fetch(host + path)
    assert str(error.value).startswith(host + path)
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer_is_told(monkeypatch):
    import socket

    monkeypatch.setattr(web, "ANSWER_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DensekitError, match=r"can't be fetched \(.*timed out"):
            web.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/a.png")
    with pytest.raises(DensekitError, match="can't be fetched"):
        web.fetch(f"http://127.0.0.1:{1}/a.png")
    with pytest.raises(DensekitError, match="can't be fetched"):
        web.fetch("http://")


def test_videos_are_not_read_from_the_web(checkpoints):
    line = runs.refused("predict", checkpoints["detection"], "https://example.com/clip.mp4")
    assert "videos are read from files" in line
