"""The real SGLang server: its numbers are the trainer's, after every publish."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from megatron_r1.config.algo import GrpoConfig
from megatron_r1.rollout.server_api import call, checksums, works
from megatron_r1.trainers.forward_passes import row_logprobs
from megatron_r1.trainers.minibatches import train_rows
from megatron_r1.types import FinishReason, Reward, RolloutGroup, ScoredGroup, TrainBatch
from tests.rollout.served import MAX_GAP, Served, needs_sglang, prompts, put, serve, worst_gap
from tests.test_bad_input import refused

pytestmark = needs_sglang


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3_moe", "deepseek_v3"])
def served(request, one_rank, tokenizer, tmp_path_factory):
    """One server for each family."""
    root = tmp_path_factory.mktemp(request.param.replace(".", "_"))
    settings = ["rollout.routed_experts=true"]
    if request.param == "qwen3_moe":  # see config/checks/servers.py
        settings.append("model.num_dense_layers=0")
    with serve(one_rank, tokenizer, root, request.param, *settings) as served:
        served.engine.publish(0)
        yield served


def test_logprobs_are_the_trainers_after_every_publish(served):
    assert worst_gap(served, served.version) < MAX_GAP
    held = []
    for version in (1, 2, 3):
        served.publish_changed(version, seed=version)
        assert worst_gap(served, version) < MAX_GAP
        [url] = served.session.servers.urls
        held.append(checksums(url, timeout_s=30))
    assert held[0].keys() == held[1].keys() == held[2].keys()
    # Noise went into every weight: but for buffers of the architecture, none is as it was.
    same = [name for name in held[0] if held[0][name] == held[1][name]]
    assert len(same) < 0.1 * len(held[0]), same


def test_stale_weights_would_be_seen(served):
    """The comparison above can fail: noise in the weights that is not published shows."""
    version = served.version
    rollouts = served.generate(prompts(1), version=version)
    saved = {name: p.detach().clone() for name, p in served.policy.named_parameters()}
    with torch.no_grad():
        for _, parameter in served.policy.named_parameters():
            parameter *= 1.1
    gaps = [served.gap(prompts(1)[0], rollout) for rollout in rollouts.values()]
    put(served, saved)
    assert torch.cat(gaps).abs().max() > 10 * MAX_GAP


def test_a_response_asked_for_again_is_the_same(served):
    version = served.version
    together = served.generate(prompts(4), version=version)
    alone = served.generate(prompts(4)[2:3], version=version)
    for key, rollout in alone.items():
        assert together[key].token_ids == rollout.token_ids
    assert len({rollout.token_ids for rollout in together.values()}) == 16


def test_whoever_looks_after_a_server_changes_no_response(served):
    """SGLang's own check of its health draws greedily, and would have all that are drawn in the
    same batch drawn from sorted tokens: others, with the same seed."""
    asked, [url] = prompts(2), served.session.servers.urls
    alone = served.generate(asked, version=served.version, max_response_tokens=4)
    over = threading.Event()

    def keep(look: Callable[..., object], *arguments: object) -> list[object]:
        found = []
        while not over.is_set():
            found.append(look(url, *arguments, timeout_s=60))
            over.wait(0.02)
        return found

    with ThreadPoolExecutor() as pool:
        looks = [pool.submit(keep, works), *(pool.submit(keep, call, "/health") for _ in range(4))]
        watched = [  # often enough: what is looked for needs a look just before the requests
            served.generate(asked, version=served.version, max_response_tokens=4) for _ in range(15)
        ]
        over.set()
    assert all(len(look.result()) >= 2 for look in looks) and all(looks[0].result())
    assert all(
        rollouts[key].token_ids == alone[key].token_ids for rollouts in watched for key in alone
    )


def test_the_stop_token_ends_a_response_and_belongs_to_it(served, tokenizer):
    """Any token can be the one that stops: the same draws then end with its first appearance."""
    version = served.version
    whole = served.generate(prompts(4), version=version)
    drawn = Counter(token for rollout in whole.values() for token in rollout.token_ids)
    stop = drawn.most_common(1)[0][0]
    stopping = dataclasses.replace(tokenizer, eos_id=stop)
    other = Served(served.policy, served.session.engine(served.policy, stopping), served.session)
    other.engine.publish(version)
    stopped = other.generate(prompts(4), version=version)
    served.engine.publish(version)
    for key, rollout in stopped.items():
        if stop in whole[key].token_ids:
            first = whole[key].token_ids.index(stop)
            assert rollout.token_ids == whole[key].token_ids[: first + 1]
            assert rollout.finish_reason is FinishReason.stop
        elif tokenizer.eos_id not in whole[key].token_ids:
            assert rollout.token_ids == whole[key].token_ids
            assert rollout.finish_reason is FinishReason.length and len(rollout.token_ids) == 24


def test_under_top_p_the_tokens_that_were_left_come_along(served, tokenizer):
    """And the log-probabilities are among those, in the engine as in the trainer's batch."""
    version, temperature, top_p = served.version, 0.9, 0.6
    session = served.session
    rollout = dataclasses.replace(session.config.rollout, sampling_masks=True, top_p=top_p)
    config = dataclasses.replace(session.config, rollout=rollout)
    engine = dataclasses.replace(session, config=config).engine(served.policy, tokenizer)
    masked = Served(served.policy, engine, session)
    engine.publish(version)
    asked = prompts(2)
    rollouts = masked.generate(asked, version=version, temperature=temperature, top_p=top_p)
    served.engine.publish(version)
    num_kept = []
    for (draw, _), found in rollouts.items():
        logprobs_KV = served.distributions(asked[draw], found, temperature)
        for row, kept in enumerate(found.kept_tokens):
            # The likeliest, until they have top_p of the mass; two that are as likely may swap.
            is_kept_V = torch.zeros(logprobs_KV.shape[1], dtype=torch.bool)
            is_kept_V[list(kept)] = True
            least, most = logprobs_KV[row, is_kept_V].min(), logprobs_KV[row, ~is_kept_V].max()
            assert least > most - 2 * MAX_GAP
            mass = float(logprobs_KV[row, is_kept_V].exp().sum())
            assert top_p - MAX_GAP < mass < top_p + float(least.exp()) + MAX_GAP
            num_kept.append(len(kept))
            own = logprobs_KV[row, found.token_ids[row]] - logprobs_KV[row, list(kept)].logsumexp(0)
            assert abs(float(own) - found.logprobs[row]) < MAX_GAP
    assert 1 < min(num_kept) and max(num_kept) < 400

    rewards = (Reward(0.0, {}, {}),)
    scored = [
        ScoredGroup(RolloutGroup(asked[draw], (found,)), rewards)
        for (draw, _), found in rollouts.items()
    ]
    rows = train_rows(scored, GrpoConfig(keep_sampling_masks=True))
    trained = row_logprobs(served.policy, TrainBatch(tuple(rows)), temperature=temperature)
    pairs = zip(trained, rows, strict=True)
    gap_K = torch.cat([(own - row.logprobs_rollout_L)[row.loss_mask_L] for own, row in pairs])
    assert len(gap_K) == sum(len(found.token_ids) for found in rollouts.values())
    assert gap_K.abs().max() < MAX_GAP


def test_routed_experts_come_with_every_token(served):
    config = served.policy.config
    if not hasattr(config, "num_experts"):
        pytest.skip("a dense model")
    asked = prompts(2)
    for (draw, _), rollout in served.generate(asked, version=served.version).items():
        experts = rollout.routed_experts
        num_passes = len(asked[draw].token_ids) + len(rollout.token_ids) - 1
        assert experts.shape == (num_passes, config.num_layers, config.experts_per_token)
        dense, sparse = experts[:, : config.num_dense_layers], experts[:, config.num_dense_layers :]
        assert (dense == 0).all() and dense.shape[1] == (config.name == "tiny_v3")
        assert sparse.min() == 0 and sparse.max() == config.num_experts - 1
        # A token's experts are different ones.
        sorted_experts = torch.from_numpy(sparse.copy()).sort(dim=-1).values
        assert (sorted_experts.diff(dim=-1) > 0).all()


def test_a_port_that_is_taken_ends_the_run_with_one_message(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refused(
            "stage=r1_zero",
            f"model.init_from={tmp_path}",
            "rollout=sglang",
            f"rollout.port={port}",
            f"run.root={tmp_path}",
            "rollout.max_response_tokens=16",
            "data.max_prompt_tokens=64",
        )
    assert f"port {port} of this machine is taken" in message and "rollout.port=0" in message
