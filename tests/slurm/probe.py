#!/usr/bin/env python3
"""Stands where step.sh expects Python: meets the other ranks, and writes what it was given.

Rank 0 listens at MASTER_ADDR:MASTER_PORT, the others send it their ranks and get the sum back. Each
writes `<PROBE_DIR>/rank<R>.json`. With PROBE_AWAITS=SIGUSR1 the first start of a job then waits for
that signal, and exits with 75. Standard library alone: a start costs 50 ms.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "SLURMD_NODENAME",
    "MASTER_ADDR",
    "OMP_NUM_THREADS",
    "NOTE",
)


def meet(rank: int, world: int, address: tuple[str, int]) -> int:
    """The sum of all ranks, by way of rank 0."""
    if rank == 0:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
            server.listen(world)
            peers = [server.accept()[0] for _ in range(world - 1)]
            total = sum(int(peer.recv(64)) for peer in peers)
            for peer in peers:
                peer.sendall(str(total).encode())
            return total
    for _ in range(200):
        try:
            peer = socket.create_connection(address, 2)
            break
        except OSError:
            time.sleep(0.05)
    peer.sendall(str(rank).encode())
    return int(peer.recv(64))


if __name__ == "__main__":
    env = os.environ
    rank = int(env["RANK"])
    awaited = {signal.Signals[env["PROBE_AWAITS"]]} if "PROBE_AWAITS" in env else set()
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    address = (env["MASTER_ADDR"], int(env["MASTER_PORT"]))
    total = meet(rank, int(env["WORLD_SIZE"]), address)
    seen = {name: env.get(name) for name in NAMES} | {"argv": sys.argv[1:], "sum": total}
    Path(env["PROBE_DIR"], f"rank{rank}.json").write_text(json.dumps(seen))
    if awaited and "SLURM_RESTART_COUNT" not in env:
        sys.exit(75 if signal.sigtimedwait(awaited, 150) else 1)
    time.sleep(float(env.get("PROBE_SLEEP_S", "0")))
    if env.get("PROBE_FAILS_ON") in sys.argv:
        sys.exit(2)
    sys.exit(int(env.get("PROBE_EXIT", "0")))
