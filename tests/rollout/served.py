"""A policy with a real SGLang server beside it, put together as a session does."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.models.policy import Policy
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.rollout.sglang import SglangEngine
from megatron_r1.stages.rollout_engine import rollout_servers
from megatron_r1.stages.session import Session
from megatron_r1.trainers.job import Job
from megatron_r1.types import Prompt, Rollout
from tests.models.builders import logits_of
from tests.models.families import load_family

needs_sglang = [
    pytest.mark.sglang,
    pytest.mark.megatron,
    pytest.mark.xdist_group("sglang"),  # a server takes 1.5 GB: one at a time
    pytest.mark.skipif(
        importlib.util.find_spec("sglang") is None,
        reason="needs SGLang: bash launch/setup_env.sh dev sglang-cpu",
    ),
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="written for SGLang's plain path, on a CPU"
    ),
]

# float32 sums in another order; a token that is drawn has a log-probability around -6.
MAX_GAP = 1e-4


@dataclasses.dataclass
class Served:
    """One policy, its engine and its servers."""

    policy: Policy
    engine: SglangEngine
    session: Session

    @property
    def version(self) -> int:
        """What the servers hold."""
        return self.engine._publisher.version

    def publish_changed(self, version: int, *, seed: int) -> None:
        """Give every weight some noise, then publish."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in self.policy.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += (0.1 * parameter.abs().mean() + 0.01) * noise
        self.engine.publish(version)

    def generate(
        self,
        some_prompts: Iterable[Prompt],
        *,
        version: int,
        num_samples: int = 4,
        max_response_tokens: int = 24,
        temperature: float = 0.9,
        top_p: float = 1.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[tuple[int, int], Rollout]:
        """Responses by prompt and sample; every group once, or it fails."""
        params = SamplingParams(
            num_samples=num_samples,
            max_response_tokens=max_response_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            seed=1,
        )
        groups = list(
            self.engine.generate(
                list(some_prompts), params, weight_version=version, on_progress=on_progress
            )
        )
        draws = [group.prompt.draw for group in groups]
        assert sorted(draws) == sorted(prompt.draw for prompt in some_prompts)
        return {(g.prompt.draw, r.sample): r for g in groups for r in g.rollouts}

    def gap(self, prompt: Prompt, rollout: Rollout, *, temperature: float = 0.9) -> torch.Tensor:
        """Engine's log-probabilities less the trainer's, in nats, token by token."""
        return torch.tensor(rollout.logprobs) - self.logprobs(prompt, rollout, temperature)

    def logprobs(self, prompt: Prompt, rollout: Rollout, temperature: float) -> torch.Tensor:
        tokens_K1 = torch.tensor(rollout.token_ids)[:, None]
        return self.distributions(prompt, rollout, temperature).gather(1, tokens_K1).squeeze(1)

    def distributions(self, prompt: Prompt, rollout: Rollout, temperature: float) -> torch.Tensor:
        """Log-probabilities of the whole vocabulary in each place of a response, [K, V]."""
        tokens_L = torch.tensor(prompt.token_ids + rollout.token_ids)
        logits_LV = logits_of(self.policy, tokens_L, [len(tokens_L)]) / temperature
        return logits_LV.log_softmax(dim=-1)[len(prompt.token_ids) - 1 : -1]


def worst_gap(served: Served, version: int) -> float:
    asked = prompts(4)
    rollouts = served.generate(asked, version=version)
    assert len(rollouts) == 16
    assert all(rollout.weight_version == version for rollout in rollouts.values())
    gaps = [served.gap(asked[draw], rollout) for (draw, _), rollout in rollouts.items()]
    return float(torch.cat(gaps).abs().max())


def put(served: Served, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in served.policy.named_parameters():
            parameter.copy_(weights[name])


def prompts(count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(5)
    lengths = [4 + 3 * (i % 5) for i in range(count)]
    return [
        Prompt(
            id=str(i),
            draw=i,
            question="",
            text="",
            token_ids=tuple(torch.randint(1, 500, (length,), generator=generator).tolist()),
            answer="",
            grader="exact",
        )
        for i, length in enumerate(lengths)
    ]


def serve(one_rank, tokenizer: Tokenizer, root: Path, family: str, *overrides: str):
    """A context manager: a `Served` whose servers end with it."""
    from contextlib import contextmanager

    @contextmanager
    def serving():
        settings = ["rollout=sglang", "rollout.check_weights_every=1", f"run.root={root}"]
        config = load_family(family, *settings, *overrides)
        policy = one_rank.policy(config)
        with rollout_servers(config, one_rank.host) as servers:
            host, job = one_rank.host, Job(one_rank.host)
            session = Session(config, host, policy.layout, config.run.dir, job, servers)
            with session.opened:
                yield Served(policy, session.engine(policy, tokenizer), session)

    return serving()
