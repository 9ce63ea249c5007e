"""An HTTP server in the test's process, which answers as the test says or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, Any], Any]
"""From a route and the body of a POST: JSON, `bytes` for what is called HTML, a status alone, or
None for silence until the test is over."""


@contextmanager
def http_server(answer: Answer) -> Iterator[str]:
    """Yields its URL."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(answer(self.path, None))

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            self._reply(answer(self.path, json.loads(self.rfile.read(length))))

        def _reply(self, found: Any) -> None:
            if found is None:
                over.wait()
                return
            status = found if isinstance(found, int) else 200
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            kind = "text/html" if isinstance(found, bytes) else "application/json"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
