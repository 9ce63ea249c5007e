"""What samples in a job: its own ranks, or servers with a way for weights to get there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch.distributed as dist

from megatron_r1.config.cluster import SlurmConfig
from megatron_r1.config.rollout import SglangConfig, WeightsBy
from megatron_r1.config.run import RunConfig
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.errors import ConfigError
from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import all_gather_objects, on_main_rank
from megatron_r1.parallel.layout import Axis
from megatron_r1.platform.host import Host
from megatron_r1.platform.node_check import host_name
from megatron_r1.rollout.remote_servers import RemoteServers
from megatron_r1.rollout.server_set import ServerSet
from megatron_r1.rollout.servers import Servers
from megatron_r1.rollout.serving_board import BOARD, ENGINE, ServingBoard
from megatron_r1.telemetry.restarts import name_of_start
from megatron_r1.weights.bucket_transport import BucketTransport
from megatron_r1.weights.directory_transport import DirectoryTransport
from megatron_r1.weights.engine_layout import EngineLayout
from megatron_r1.weights.transport import WeightTransport

_LOCAL_HOSTS = {"127.0.0.1", "localhost", "::1"}


def weight_transport(
    policy: Policy, tokenizer: Tokenizer, config: SglangConfig, run_dir: Path
) -> WeightTransport:
    """What `rollout.weights_by` names. Every rank of the job calls it."""
    files = DirectoryTransport(
        policy,
        tokenizer,
        run_dir / ENGINE / "weights",
        timeout_s=config.publish_timeout_s,
        silence_s=config.health_timeout_s,
        fp8=config.fp8,
    )
    if config.weights_by is WeightsBy.directory:
        return files
    world = Axis.of(dist.group.WORLD)
    through_memory = config.weights_by is WeightsBy.shared_memory
    if through_memory:
        check_one_machine(all_gather_objects(host_name(), world), config)
    return BucketTransport(
        policy,
        None if config.urls else files,
        world=world,
        through_memory=through_memory,
        timeout_s=config.publish_timeout_s,
        silence_s=config.health_timeout_s,
        start_files_every=config.start_files_every,
        engine=EngineLayout(fp8=config.fp8),
        bucket_bytes=config.bucket_bytes,
    )


def check_one_machine(hosts: Sequence[str], config: SglangConfig) -> None:
    """Refuse to share memory with another machine.

    Args:
        hosts: of all ranks of the trainer.
    """
    others = sorted(set(hosts) - {hosts[0]})
    remote = [url for url in config.urls if urlsplit(url).hostname not in _LOCAL_HOSTS]
    if others or remote:
        raise ConfigError(
            "rollout.weights_by = shared_memory needs all ranks and servers on one machine, and "
            f"{', '.join([*others, *remote])} is not on {hosts[0]}. Set weights_by=collective; a "
            "server of this machine is called http://127.0.0.1:PORT in rollout.urls"
        )


@contextmanager
def rollout_servers(config: RunConfig, host: Host) -> Iterator[ServerSet | None]:
    """Servers on the main rank, where the configuration wants any; they end with the block."""
    if not isinstance(config.rollout, SglangConfig):
        yield None
        return
    opened: list[ServerSet] = []

    def open_them() -> None:
        engine_dir, cluster = config.run.dir / ENGINE, config.cluster
        if isinstance(cluster, SlurmConfig) and cluster.rollout_nodes:
            opened.append(
                RemoteServers(
                    ServingBoard(engine_dir / BOARD / name_of_start()),
                    config.rollout,
                    config.model,
                    num_nodes=cluster.rollout_nodes,
                    show_progress=config.telemetry.progress,
                )
            )
            return
        opened.append(
            Servers(
                config.rollout,
                config.model,
                dtype=config.precision.dtype.value,
                log_dir=engine_dir,
                on_cuda=host.is_cuda,
                show_progress=config.telemetry.progress,
            )
        )

    on_main_rank(open_them)
    try:
        yield opened[0] if opened else None
    finally:
        for servers in opened:
            servers.close()
