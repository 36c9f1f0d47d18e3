"""Where the browser brings the result of a login: one small server on the loopback address, for one answer."""

from __future__ import annotations

import hmac
import http.server
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

from gateway.cli.output import fail

_PAGE = b"<!doctype html><meta charset=utf-8><title>Logged in</title><p>You are logged in. You can close this page.</p>"
_STUCK_S = 5.0


class Mailbox:
    """Takes the code that comes with the right state; whatever else comes is told off and forgotten."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._codes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.port = 0

    def offer(self, address: str) -> bool:
        """Is this the address that a browser is sent to at the end of our login? Then its code is kept."""
        parts = urlsplit(address)
        pairs = parse_qsl(parts.query)
        query = dict(pairs)
        fits = parts.path == "/callback" and len(pairs) == len(query) and bool(query.get("code"))
        if not fits or not hmac.compare_digest(query.get("state", "").encode(), self._state.encode()):
            return False
        self._codes.put(query["code"])
        return True

    def wait(self, timeout_s: float) -> str:
        """The code; `CommandFailed` where none came in time."""
        try:
            return self._codes.get(timeout=timeout_s)
        except queue.Empty:
            fail("Nobody said yes in the browser in time: begin again.")


@contextmanager
def listening(state: str) -> Iterator[Mailbox]:
    """A mailbox with a port of 127.0.0.1."""
    mailbox = Mailbox(state)

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _STUCK_S

        def do_GET(self) -> None:
            fits = mailbox.offer(self.path)
            body = _PAGE if fits else b"This is not what was waited for."
            self.send_response(200 if fits else 400)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.send_header("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
            self.send_header("referrer-policy", "no-referrer")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the address holds the code."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mailbox.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield mailbox
        finally:
            server.shutdown()
