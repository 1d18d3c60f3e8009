"""A web server on 127.0.0.1 that serves one file, and does with each request what the test says."""

import io
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

Answer = Callable[["Handler"], None]


def connect_plainly(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    """No proxy on the way to 127.0.0.1, and no reading of certificates, which takes longer than most tests.

    Args:
        monkeypatch: Changes the environment, also that of processes that the test starts.
        empty: A folder without certificates.
    """
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(empty))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class MisbehavingServer:
    """Answers requests in the order of `answers`, later ones as a good server would.

    Attributes:
        content: The file.
        headers: Further headers of good answers; a test removes or changes them.
        answers: What to do with the next requests.
        ranges: Range header of each request that came, None where there was none.
        if_ranges: If-Range header of each request that came, None where there was none.
        released: Ends all stalls.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.headers = {"ETag": '"first"', "Last-Modified": "Sat, 01 Oct 2022 10:00:00 GMT"}
        self.content_type = "application/x-gzip"
        self.answers: list[Answer] = []
        self.knows_ranges = True
        self.ranges: list[str | None] = []
        self.if_ranges: list[str | None] = []
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"world": self}))
        self._server.daemon_threads = False  # so that closing waits for the last answer
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/BreaKHis_v1.tar.gz"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    world: MisbehavingServer

    def do_GET(self) -> None:
        self.world.ranges.append(self.headers["Range"])
        self.world.if_ranges.append(self.headers["If-Range"])
        answer = self.world.answers.pop(0) if self.world.answers else whole
        try:
            answer(self)
        except ConnectionError:  # the client went away, as some tests want
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that http.server gives it
        pass

    def send_head(self, length: int | None = None) -> bytes:
        """Sends status and headers as a good server would, and returns the body to send."""
        world = self.world
        asked = re.fullmatch(r"bytes=([0-9]+)-", self.headers["Range"] or "") if world.knows_ranges else None
        validator = self.headers["If-Range"]
        if validator is not None and validator not in world.headers.values():
            asked = None
        first = int(asked[1]) if asked else 0
        body = world.content[first:]
        if asked and not body:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(world.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        self.send_response(206 if asked else 200)
        if asked:
            total = len(world.content)
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Content-Type", world.content_type)
        for name, value in world.headers.items():
            self.send_header(name, value)
        self.end_headers()
        return body


def whole(handler: Handler) -> None:
    handler.wfile.write(handler.send_head())


def cut_after(n_bytes: int) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(handler.send_head()[:n_bytes])
        handler.close_connection = True

    return answer


def reset_after(n_bytes: int) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(handler.send_head()[:n_bytes])
        linger_no_time = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_no_time)
        handler.connection.close()
        handler.close_connection = True

    return answer


def stall_after(n_bytes: int) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(handler.send_head()[:n_bytes])
        handler.wfile.flush()
        handler.world.released.wait(60)
        handler.close_connection = True

    return answer


def claim_length(n_bytes: int) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(handler.send_head(length=n_bytes)[:n_bytes])
        handler.close_connection = True

    return answer


def response_bytes(answer: Answer, handler: Handler) -> bytes:
    """What an answer sends, head and body; it is not sent."""
    connection, handler.wfile = handler.wfile, io.BytesIO()
    try:
        answer(handler)
        return handler.wfile.getvalue()
    finally:
        handler.wfile = connection


def cut_response_after(n_bytes: int) -> Answer:
    """Cuts the connection after some bytes, those of status line and headers counted too."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(response_bytes(whole, handler)[:n_bytes])
        handler.close_connection = True

    return answer


def raw(response: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        handler.wfile.write(response)
        handler.close_connection = True

    return answer


def drip(chunk_bytes: int, *, pause_s: float) -> Answer:
    """Sends all, a chunk at a time."""

    def answer(handler: Handler) -> None:
        body = handler.send_head()
        for start in range(0, len(body), chunk_bytes):
            handler.wfile.write(body[start : start + chunk_bytes])
            time.sleep(pause_s)

    return answer


def short_length(n_bytes: int) -> Answer:
    """Says that the file ends after some bytes, and sends all of it."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(handler.send_head(length=n_bytes))
        handler.close_connection = True

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def redirect(location: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def without_length(handler: Handler) -> None:
    cut_without_length(len(handler.world.content))(handler)


def cut_without_length(n_bytes: int) -> Answer:
    """Sends some bytes and ends, as a server does that does not say how long the file is."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        for name, value in handler.world.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(handler.world.content[:n_bytes])
        handler.close_connection = True

    return answer


def other_range(content_range: str) -> Answer:
    """Answers 206 with a Content-Range that is not the one asked for."""

    def answer(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", content_range)
        handler.send_header("Content-Length", "1")
        handler.end_headers()
        handler.wfile.write(b"?")

    return answer
