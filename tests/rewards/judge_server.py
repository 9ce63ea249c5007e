"""A small OpenAI-compatible endpoint whose judge is a function of the prompt."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Endpoint:
    """What the server saw."""

    url: str = ""
    requests: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Reply:
    """What the judge answers."""

    text: str = ""
    finish_reason: str = "stop"
    status: int = 200
    delay_s: float = 0.0


@contextmanager
def judge_server(judge: Callable[[dict], Reply]) -> Iterator[Endpoint]:
    """Serve ``/v1/chat/completions`` until the block ends; `judge` gets the request's body."""
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.requests.append({**body, "authorization": self.headers["Authorization"]})
            reply = judge(body)
            time.sleep(reply.delay_s)
            message = {"role": "assistant", "content": reply.text}
            record = {
                "choices": [{"message": message, "finish_reason": reply.finish_reason}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 7},
            }
            content = json.dumps(record).encode()
            try:
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except BrokenPipeError:
                pass  # the client gave up

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
