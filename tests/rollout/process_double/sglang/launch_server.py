"""Takes SGLang's place as the process that a job starts: there in a moment, and ill where asked.

`--illness-of-first N`, with a file in `--starts`, has the first N processes answer requests for
responses with `--illness`: a status, of 200 with a web page. To all else they answer well.
"""

from __future__ import annotations

import argparse
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--weight-version")
parser.add_argument("--architecture")
parser.add_argument("--starts", type=Path)
parser.add_argument("--illness", type=int, default=200)
parser.add_argument("--illness-of-first", type=int, default=0)
args, _ = parser.parse_known_args()

with args.starts.open("a+") as starts:
    starts.write("started\n")
    starts.seek(0)
    is_ill = len(starts.readlines()) <= args.illness_of_first

RESPONSE = {
    "output_ids": [8],
    "meta_info": {
        "finish_reason": {"type": "stop", "matched": 8},
        "output_token_logprobs": [[-1.5, 8, None]],
        "weight_versions": [{"version": args.weight_version, "start": 0, "end": 1}],
    },
}
INFO = {
    "architectures": [args.architecture],
    "weight_version": args.weight_version,
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        at_work = {"loads": [{"num_running_reqs": 1, "timestamp": time.time()}]}
        self._reply(json.dumps(INFO | at_work).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if is_ill:
            self._reply(b"<html>hello</html>", args.illness)
        else:
            self._reply(json.dumps(RESPONSE).encode())

    def _reply(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


ThreadingHTTPServer((args.host, args.port), Handler).serve_forever()
