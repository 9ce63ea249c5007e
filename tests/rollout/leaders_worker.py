"""Two ranks that sample from HTTP servers of the test: as two leaders, and as a leader with a rank
that it hands groups to.

    torchrun --nproc-per-node=2 leaders_worker.py
"""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace

import torch.distributed as dist

from megatron_r1.config.load import load_config
from megatron_r1.config.rollout import AtPublish, SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.parallel.exchange import broadcast_object
from megatron_r1.parallel.layout import Axis
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.rollout.sglang import SglangEngine
from tests.rollout.http_double import http_server
from tests.rollout.test_requests import PROMPTS, Watched, good

PARAMS = SamplingParams(1, 4, temperature=1.0, top_p=1.0, top_k=0, seed=1)
SLOW_S = 3.0


class NoPublisher:
    """Publishes nothing, and notes when."""

    version, owner = 3, "mine"
    published_s = 0.0

    def __init__(self, *urls: str) -> None:
        self.urls = urls

    def publish(self, version: int) -> dict[str, float]:
        self.published_s = time.monotonic()
        return {}

    def close(self) -> None: ...


def engine(kind: type[SglangEngine], publisher: NoPublisher, servers: Watched, **layout):
    return kind(
        SglangConfig(at_publish=AtPublish.wait),
        load_config(["model=tiny_v3"]).model,
        SimpleNamespace(**layout),
        SimpleNamespace(decode=str, eos_id=8),
        publisher,
        servers if dist.get_rank() == 0 else None,
    )


def leaders_wait_for_each_other(world: Axis) -> None:
    """The main rank looks after the servers until the last response of all leaders is there."""

    def slow(route: str, body: object) -> dict:
        time.sleep(SLOW_S)
        return good(route, body)

    alone, servers = SimpleNamespace(rank=0, size=1), Watched()
    with http_server(slow if world.rank else good) as url:
        publisher = NoPublisher(url)
        layout = {"is_leader": True, "replica": alone, "dp_cp": world}
        of_leader = engine(SglangEngine, publisher, servers, **layout)
        dist.barrier()
        started_s = time.monotonic()
        of_leader.start_ahead(PROMPTS, PARAMS)
        of_leader.publish(4)
        waited_s = publisher.published_s - started_s
        assert waited_s > 0.9 * SLOW_S
        if world.rank == 0:  # every half second, and no more often
            assert 3 < servers.num_looks <= 2 * waited_s + 1, (servers.num_looks, waited_s)
        of_leader.close()


def main_rank_hears_of_servers_that_fail_others(world: Axis) -> None:
    """Another leader's first four requests have unusable answers."""

    def slow(route: str, body: object) -> dict:
        time.sleep(2.0)
        return good(route, body)

    alone, servers = SimpleNamespace(rank=0, size=1), Watched()
    with http_server(lambda route, body: b"<html>hello</html>") as bad, http_server(slow) as url:
        urls = [bad, url] if world.rank else [url]
        layout = {"is_leader": True, "replica": alone, "dp_cp": world}
        of_leader = engine(SglangEngine, NoPublisher(*urls), servers, **layout)
        params = dataclasses.replace(PARAMS, num_samples=2)
        assert len(list(of_leader.generate(PROMPTS, params, weight_version=3))) == len(PROMPTS)
        dist.broadcast_object_list(box := [bad], src=1)
        assert [*servers.failing] == (box if world.rank == 0 else [])
        of_leader.close()


class Failing(SglangEngine):
    """Fails when it has handed all groups on."""

    def _groups(self, prompts, params, on_progress):
        yield from prompts
        raise EngineError("a server is lost")


def a_late_error_is_its_leaders_own(world: Axis) -> None:
    layout = {"is_leader": world.rank == 0, "replica": world, "dp_cp": world}
    of_replica = engine(Failing, NoPublisher(), Watched(), **layout)
    groups = []
    try:
        for group in of_replica.generate(PROMPTS, PARAMS, weight_version=3):
            groups.append(group)
    except EngineError:
        assert world.rank == 0
    assert groups == PROMPTS
    # What the leader says next is the next thing that is heard.
    assert broadcast_object("next", world) == "next"


def main() -> None:
    dist.init_process_group("gloo")
    world = Axis.of(dist.group.WORLD)
    leaders_wait_for_each_other(world)
    main_rank_hears_of_servers_that_fail_others(world)
    a_late_error_is_its_leaders_own(world)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
