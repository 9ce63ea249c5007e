"""The scripted teacher behind an OpenAI-compatible endpoint, as a process of its own.

    python -m megatron_r1.data.tiny_world.server [--port N]

It serves ``POST /v1/chat/completions`` and ``GET /health`` on 127.0.0.1, prints its address as the
first line, and ends when its parent closes its standard input, however the parent ends. A request
that is no chat is refused with status 400 and says why, as a model's server does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from megatron_r1.data.tiny_world.teacher import reply_to
from megatron_r1.errors import DataError

MODEL = "tiny-world-teacher"
MAX_BODY_BYTES = 1 << 20
_COMPLETIONS = "/v1/chat/completions"


class RefusedError(Exception):
    """A request that cannot be answered, and why."""


@contextmanager
def serving_teacher(timeout_s: float = 60.0) -> Iterator[str]:
    """Start the server on a free port, and end it with the block. Yields its base URL.

    Raises:
        DataError: it did not come up; the message holds what it wrote.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_r1.data.tiny_world.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin and process.stdout and process.stderr
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        address = process.stdout.readline().strip()
        timer.cancel()
        if not address.startswith("http://"):
            process.kill()
            raise DataError(
                f"the tiny world's teacher did not come up within {timeout_s:g} s: "
                f"{process.stderr.read()[-500:] or 'it wrote nothing'}. Start it by hand: "
                "python -m megatron_r1.data.tiny_world.server"
            )
        yield address
    finally:
        timer.cancel()
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


def completion_of(body: bytes) -> dict[str, Any]:
    """The reply to a chat request.

    Raises:
        RefusedError: not JSON, another model, or no message of a user.
    """
    try:
        request = json.loads(body)
    except ValueError as error:
        raise RefusedError(f"the body is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise RefusedError(f"the body must be an object, got {type(request).__name__}")
    model = request.get("model")
    if model not in (MODEL, "default"):
        raise RefusedError(f"model {model!r} is not served here, only {MODEL!r}")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError("'messages' must be a list that is not empty")
    last = messages[-1]
    content = last.get("content") if isinstance(last, dict) else None
    if not isinstance(content, str) or last.get("role") != "user":
        raise RefusedError("the last message must be the user's, with a text as content")
    seed = request.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RefusedError(f"'seed' must be a whole number, got {seed!r}")
    text = reply_to(content, seed)
    usage = {"prompt_tokens": len(content.split()), "completion_tokens": len(text.split())}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    return {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """Connections that wait; http.server's own 5 turns away a judge that asks 32 things at once."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        else:
            self._send(404, _error(f"no such path: {self.path}"))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self._send(413, _error(f"Content-Length {length!r} is not from 0 to {MAX_BODY_BYTES}"))
            return
        body = self.rfile.read(int(length))
        if self.path != _COMPLETIONS:
            self._send(404, _error(f"no such path: {self.path}"))
            return
        try:
            self._send(200, completion_of(body))
        except RefusedError as error:
            self._send(400, _error(str(error)))

    def _send(self, status: int, record: dict[str, Any]) -> None:
        content = json.dumps(record).encode()  # ASCII: half of a surrogate pair survives
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client gave up

    def log_message(self, *_: Any) -> None:
        """A line for each request would fill the standard error that nobody reads."""


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    arguments = parser.parse_args()
    server = _Server(("127.0.0.1", arguments.port), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
