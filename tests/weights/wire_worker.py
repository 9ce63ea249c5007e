"""One rank of the tests of weights on their way to engines: publishes from many layouts.

    torchrun ... wire_worker.py CASE      CASE: a JSON file

Its ranks start one real SGLang server, publish weights drawn from some seeds through a directory
from as many replicas as there are ranks, and take the server's checksums as what they have to be;
then go through rounds of a way, a layout and what happens amid the last publish: publish the same
weights, and compare checksums and log-probabilities. Results, a list, go to the file `results` of
the case.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_r1.platform.host import Host, prepare, start_process_group, stop_process_group
from tests.weights.live_bytes import LiveBytes


def main(case: dict[str, Any]) -> None:
    host = prepare()
    start_process_group(host, timeout_minutes=30)
    from megatron_r1.stages.rollout_engine import rollout_servers

    config = configuration(case, {})
    results: list[dict[str, Any]] = []
    with rollout_servers(config, host) as servers:
        reference = publishes(case, host, servers, {}, way="directory")["held"]
        for way, parallel, strike in case["rounds"]:
            found = publishes(case, host, servers, parallel, way=way, strike=strike)
            found["same_checksums"] = found.pop("held") == reference
            results.append({"way": way, "layout": parallel, "strike": strike} | found)
            if dist.get_rank() == 0:
                print(json.dumps(results[-1]), flush=True)
    if dist.get_rank() == 0:
        Path(case["results"]).write_text(json.dumps(results, indent=1))
    stop_process_group()


def configuration(case: dict[str, Any], parallel: dict[str, Any]) -> Any:
    from tests.models.families import load_family

    settings = [
        f"{name if '.' in name else 'parallel.' + name}={value}" for name, value in parallel.items()
    ]
    settings += ["rollout=sglang", f"run.root={case['root']}", "telemetry.progress=false"]
    settings += ["rollout.check_weights_every=1", "model.init_from=base"]
    config = load_family(case["family"], *case["overrides"], *settings)
    config.validate(dist.get_world_size())
    return config


def publishes(
    case: dict[str, Any],
    host: Host,
    servers: Any,
    parallel: dict[str, Any],
    *,
    way: str,
    strike: str | None = None,
) -> dict[str, Any]:
    """Publish the weights of each seed from one layout, the last amid a strike."""
    from megatron_r1.config.optimizer import OptimizerConfig
    from megatron_r1.data.tokenizer import load_tokenizer
    from megatron_r1.models.policy import Policy
    from megatron_r1.parallel.layout import enter_layout
    from megatron_r1.rollout.server_api import checksums
    from megatron_r1.stages.rollout_engine import weight_transport
    from megatron_r1.trainers.megatron_step import MegatronStep
    from megatron_r1.weights.plan_report import peak_bound
    from megatron_r1.weights.publish import Publisher

    config = configuration(case, parallel | {"rollout.weights_by": way})
    layout = enter_layout(config.parallel, seed=1)
    policy = Policy(config.model, layout, config.precision, host, seed=0)
    step = MegatronStep(policy, OptimizerConfig())
    tokenizer = load_tokenizer(case["tokenizer"])
    transport = weight_transport(policy, tokenizer, config.rollout, config.run.dir)
    measured = MeasuredTransport(transport, policy)
    publisher = Publisher(measured, servers, config.rollout)
    if way == "directory":
        publisher.publish(0)  # starts the server, from files
    held, gaps, metrics = [], [], []
    for version, seed in enumerate(case["seeds"], start=1):
        draw_weights(policy, config, seed)
        if strike is not None and layout.is_main and seed == case["seeds"][-1]:
            amid_buckets(servers, getattr(signal, strike))
        metrics.append(dict(publisher.publish(version)))
        [url] = publisher.urls
        held.append(checksums(url, timeout_s=60) if layout.is_main else None)
        gaps.append(gap(step, url))
    publisher.close()
    return {
        "held": held,
        "gap": largest(gaps),
        "left_in_memory": most(len(list(Path("/dev/shm").glob(f"torch_{os.getpid()}_*")))),
        "peak_bytes": most(measured.peak_bytes),
        "peak_bound": 0 if way == "directory" else peak_bound(transport.plan),
        "metrics": metrics[-1],
    }


def amid_buckets(servers: Any, signal_number: signal.Signals) -> None:
    """Strike the server, in the background, when it has taken some buckets of the next publish."""
    [pid], log = servers.pids, servers.logs[0]
    seen = log.read_bytes().count(b"POST /update_weights_from_")

    def strike() -> None:
        while log.read_bytes().count(b"POST /update_weights_from_") < seen + 2:
            time.sleep(0.01)
        os.killpg(pid, signal_number)

    threading.Thread(target=strike, daemon=True).start()


class MeasuredTransport:
    """Sends as another does, and counts the memory that it takes; files are not counted."""

    def __init__(self, transport: Any, policy: Any) -> None:
        self._transport = transport
        self._policy = policy
        self.peak_bytes = 0

    def prepare(self, label: str) -> Any:
        return self._transport.prepare(label)

    def join(self, urls: list[str]) -> None:
        self._transport.join(urls)

    def send(self, label: str, urls: list[str]) -> Any:
        with LiveBytes(p for _, p in self._policy.named_parameters()) as live:
            metrics = self._transport.send(label, urls)
        self.peak_bytes = max(self.peak_bytes, live.peak)
        return metrics

    def close(self) -> None:
        self._transport.close()


def largest(values: Iterable[float]) -> float:
    """NaN where one is."""
    return float(torch.tensor(list(values)).max())


def most(value: float) -> float:
    """The largest of all ranks'."""
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def draw_weights(policy: Any, config: Any, seed: int) -> None:
    """Weights that are the same in every layout."""
    from megatron_r1.models.policy import Policy

    drawn = Policy(config.model, policy.layout, config.precision, policy.host, seed=1000 + seed)
    with torch.no_grad():
        pairs = zip(policy.named_parameters(), drawn.named_parameters(), strict=True)
        for (name, parameter), (other, value) in pairs:
            assert name == other
            parameter.copy_(value)
        for name, buffer in policy.named_buffers():
            if name.endswith("expert_bias"):
                generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
                buffer.copy_(torch.randn(buffer.shape, generator=generator) / 100)


def gap(step: Any, url: str) -> float:
    """Largest difference of log-probabilities of the same tokens, in nats."""
    from megatron_r1.rollout.server_api import call
    from megatron_r1.trainers.forward_passes import row_logprobs
    from megatron_r1.types import TrainBatch, TrainRow

    generator = torch.Generator().manual_seed(3)
    tokens = [torch.randint(1, 500, (n,), generator=generator) for n in (23, 40, 31)]
    rows = []
    for tokens_L in tokens:
        zeros_L = torch.zeros(len(tokens_L))
        rows.append(
            TrainRow(
                tokens_L=tokens_L,
                loss_mask_L=torch.ones(len(tokens_L), dtype=torch.bool),
                advantage=0.0,
                weight=0.0,
                logprobs_rollout_L=zeros_L,
                logprobs_old_L=zeros_L,
                logprobs_ref_L=zeros_L,
            )
        )
    own = row_logprobs(step.policy, TrainBatch(rows=tuple(rows)))
    box = [None]
    if dist.get_rank() == 0:
        request = {
            "input_ids": [tokens_L.tolist() for tokens_L in tokens],
            "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        box = [generate(call, url, request)]
    dist.broadcast_object_list(box)
    if not step.policy.layout.is_last_stage:
        return most(0.0)
    pairs = zip(own, box[0], strict=True)
    return most(largest(float((a_L[1:] - torch.tensor(b[1:])).abs().max()) for a_L, b in pairs))


def generate(call: Any, url: str, request: dict[str, Any]) -> list[list[float]]:
    """The server's log-probabilities of each prompt's tokens."""
    found = []
    for token_ids in request["input_ids"]:
        answer = call(url, "/generate", request | {"input_ids": token_ids}, timeout_s=60)
        logprobs = [logprob for logprob, *_ in answer["meta_info"]["input_token_logprobs"]]
        found.append([0.0, *logprobs[1:]])
    return found


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
