"""`python -m megatron_r1.serve [overrides]`: one node's rollout servers, for a trainer elsewhere.

launch/step.sh runs it, with the trainer's overrides, on those nodes of a heterogeneous job that
serve (`cluster.rollout_nodes`). The trainer says from which weights to start, and when to end.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from megatron_r1 import signals
from megatron_r1.config.load import load_config
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.config.run import RunConfig
from megatron_r1.errors import EXIT_DONE, EXIT_RUN_AGAIN, EXIT_USER_ERROR, ConfigError, UserError
from megatron_r1.platform.host import prepare
from megatron_r1.rollout.servers import Servers
from megatron_r1.rollout.serving_board import BOARD, ENGINE, NodeReport, ServingBoard
from megatron_r1.telemetry.restarts import name_of_start

_POLL_S = 0.2
_SILENCE_S = 6.0
"""After SIGTERM, which Slurm sends to every process of a job: a trainer that lives may want its
last answers."""
_LINGER_S = 60.0
"""After an orderly end: the first component that leaves ends the others, and the trainer may still
be saving."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the trainer says that it is over. Returns the exit code."""
    signals.listen()
    try:
        config = load_config(sys.argv[1:] if arguments is None else arguments)
        with signals.terminate_later():
            return serve(config, node=int(os.environ.get("SLURM_PROCID", "0")))
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR


def serve(config: RunConfig, *, node: int) -> int:
    """Bring up this node's servers, look after them, end them."""
    if not isinstance(config.rollout, SglangConfig):
        raise ConfigError(f"rollout.name = {config.rollout.name} has no servers: rollout=sglang")
    own_address = os.environ.get("SERVER_HOST", config.rollout.host)
    engine_dir = config.run.dir / ENGINE
    board = ServingBoard(engine_dir / BOARD / name_of_start())
    try:
        servers = Servers(
            dataclasses.replace(config.rollout, host=own_address, urls=[]),
            config.model,
            dtype=config.precision.dtype.value,
            log_dir=engine_dir / f"node_{node}",
            on_cuda=prepare().is_cuda,
            show_progress=False,
        )
        with closing(servers):
            report = serve_until_over(board, servers, node)
    except UserError as error:
        if signals.was_terminated():  # its servers were, too
            print(f"ended while it started servers: {error}", flush=True)
            return EXIT_RUN_AGAIN
        board.report(node, NodeReport(failure=str(error)))
        raise
    board.report(node, dataclasses.replace(report, has_ended=True))
    print(f"servers ended: the trainer is {'done' if board.is_over else 'gone'}", flush=True)
    if not board.is_over:
        return EXIT_RUN_AGAIN
    _linger()
    return EXIT_DONE


def serve_until_over(board: ServingBoard, servers: Servers, node: int) -> NodeReport:
    """Do what the trainer writes on the board. Returns what was last reported.

    Raises:
        EngineError: a server cannot be had.
    """
    report = NodeReport()
    beat, heard_s = "", time.monotonic()
    while not board.is_over:
        if board.last_beat() != beat:
            beat, heard_s = board.last_beat(), time.monotonic()
        if signals.was_terminated() and time.monotonic() - heard_s > _SILENCE_S:
            break
        wanted, before = board.wanted(), report
        servers.hold(board.is_held)
        if wanted is not None and wanted.name != (report.label, report.attempt):
            label = wanted.weights.label
            print(f"bringing up servers for weights {label}", flush=True)
            fresh = tuple(servers.bring_up(wanted.weights, wanted.at_fault))
            report = NodeReport(label, tuple(servers.urls), fresh, attempt=wanted.attempt)
        elif report.label is not None:
            servers.look_after(board.failing())
        report = dataclasses.replace(report, num_restarts=servers.num_restarts)
        if report != before:
            board.report(node, report)
        time.sleep(_POLL_S)
    return report


def _linger() -> None:
    """Stay until the job ends this process, or the trainer had time to leave."""
    deadline_s = time.monotonic() + _LINGER_S
    while time.monotonic() < deadline_s and not signals.was_terminated():
        time.sleep(_POLL_S)


if __name__ == "__main__":
    sys.exit(main())
