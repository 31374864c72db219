"""A server that answers what it is told, for commands that ask one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def answering(pages: Mapping[str, Any], asked: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """Yield the URL of a server. `pages`: "GET /path" -> JSON, bytes, or (status, JSON or bytes); else 404.

    `asked` gets a record of every request.
    """

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if asked is not None:
                asked.append({"path": self.path, "headers": dict(self.headers), "body": body})
            page = pages.get(f"{self.command} {self.path}", (404, {"error": {"message": "there is none"}}))
            status, value = page if isinstance(page, tuple) else (200, page)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
