"""SGLang servers decode; the leader of each replica asks for the responses to its own prompts.

The servers belong to the job's main rank (`servers.py`), the requests to each leader
(`request_pool.py`), and what leaders receive they pass on to the other ranks of their replica,
group by group.
"""

from __future__ import annotations

import json
import queue
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch.distributed as dist

from megatron_r1.config.model import MixtureConfig, ModelConfig
from megatron_r1.config.rollout import AtPublish, SglangConfig
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.errors import UserError
from megatron_r1.parallel.exchange import broadcast_object, main_rank_answers, post, posted
from megatron_r1.parallel.layout import Layout
from megatron_r1.rollout.engine import OnProgress, SamplingParams, check_context
from megatron_r1.rollout.request_pool import Outcome, RequestPool
from megatron_r1.rollout.responses import ResponseRequest, read_response, request_body
from megatron_r1.rollout.server_set import ServerSet
from megatron_r1.types import Prompt, Rollout, RolloutGroup
from megatron_r1.weights.publish import Publisher

_LOOK_S = 0.5
_POLL_S = 0.01
_FAILING = "rollout/failing"


class SglangEngine:
    """A `RolloutEngine` on servers that hold a copy of the weights."""

    def __init__(
        self,
        config: SglangConfig,
        model: ModelConfig,
        layout: Layout,
        tokenizer: Tokenizer,
        publisher: Publisher,
        servers: ServerSet | None,
    ) -> None:
        """`servers` are the main rank's; None on the others."""
        self._config = config
        self._model = model
        self._layout = layout
        self._tokenizer = tokenizer
        self._publisher = publisher
        self._servers = servers
        self._counts: Counter[str] = Counter()
        self._ahead: tuple[list[ResponseRequest], SamplingParams, RequestPool] | None = None
        self._waits_for: RequestPool | None = None
        self._looked_s = time.monotonic()
        self._restarts_told = self._num_restarts

    def publish(self, version: int) -> Mapping[str, float]:
        """Responses that are being sampled ahead are interrupted, or waited for."""
        if self._config.at_publish is AtPublish.wait and self._layout.is_leader:
            if self._ahead is not None:
                *_, self._waits_for = self._ahead
                self._waits_for.start_clock()
                while self._waits_for.is_working():
                    self._look_when_due()
                    time.sleep(_POLL_S)
            self._wait_for_other_leaders()
        times_s = self._publisher.publish(version)
        if self._ahead is not None:  # nobody looked after servers while the trainer trained
            self._ahead[-1].start_clock()
        return times_s

    def start_ahead(self, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        """The leader's requests go out, from a thread; nothing is said to other ranks before
        `generate`. Servers that die meanwhile are started again by the next publish."""
        self._drop_ahead()
        if not self._layout.is_leader:
            return
        check_context(prompts, params, self._model.max_positions)
        requests = _requests(prompts, params)
        pool = self._pool(requests, params)
        pool.start()
        self._ahead = requests, params, pool

    def close(self) -> None:
        """Give up what is sampled ahead, and the connections of the publisher."""
        self._drop_ahead()
        self._publisher.close()

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            *_, pool = self._ahead
            pool.stop()
            self._ahead = None

    def take_metrics(self) -> Mapping[str, tuple[float, float]]:
        taken, self._counts = self._counts, Counter()
        return {f"rollout/{name}": (float(number), 0.0) for name, number in taken.items()}

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        weight_version: int,
        on_progress: OnProgress | None = None,
    ) -> Iterator[RolloutGroup]:
        """Yield this replica's groups, on its leader as they arrive. Every rank of the replica must
        iterate to the end.

        Raises:
            EngineError: no server gives usable answers, or one holds weights of someone else.
        """
        assert weight_version == self._publisher.version, "publish before you sample"
        check_context(prompts, params, self._model.max_positions)
        replica = self._layout.replica
        if not self._layout.is_leader:
            for _ in prompts:
                group = broadcast_object(None, replica)
                if isinstance(group, UserError):
                    raise group
                yield group
            return
        num_left = len(prompts)
        try:
            for group in self._groups(prompts, params, on_progress):
                num_left -= 1
                yield broadcast_object(group, replica)
        except UserError as error:
            if num_left:  # else the others wait for nothing more
                broadcast_object(error, replica)
            error.one_rank = True  # other leaders may be well
            raise

    def _groups(
        self, prompts: Sequence[Prompt], params: SamplingParams, on_progress: OnProgress | None
    ) -> Iterator[RolloutGroup]:
        """Each group when its last response is there."""
        requests = _requests(prompts, params)
        pool = self._started_pool(requests, params) or self._pool(requests, params)
        self._waits_for = pool
        waiting: dict[int, list[Rollout]] = {}
        num_tokens = 0
        with pool.running() as outcomes:
            for num_done in range(1, len(requests) + 1):
                request, rollout = self._next(outcomes)
                num_tokens += len(rollout.token_ids)
                if on_progress is not None:
                    on_progress(num_done, num_tokens)
                rollouts = waiting.setdefault(request.prompt_index, [])
                rollouts.append(rollout)
                if len(rollouts) == params.num_samples:
                    del waiting[request.prompt_index]
                    by_sample = tuple(sorted(rollouts, key=lambda rollout: rollout.sample))
                    yield RolloutGroup(prompt=request.prompt, rollouts=by_sample)
        assert not waiting, f"groups without all of their responses: {sorted(waiting)}"
        self._wait_for_other_leaders()
        restarts = self._num_restarts - self._restarts_told
        self._restarts_told += restarts
        self._counts.update(asdict(pool.counts), server_restarts=restarts)

    def _started_pool(
        self, requests: list[ResponseRequest], params: SamplingParams
    ) -> RequestPool | None:
        """The one that was started ahead for these; others stay what they are."""
        if self._ahead is None or self._ahead[:2] != (requests, params):
            return None
        *_, pool = self._ahead
        self._ahead = None
        return pool

    def _pool(self, requests: Sequence[ResponseRequest], params: SamplingParams) -> RequestPool:
        config, model = self._config, self._model
        has_experts = config.routed_experts and isinstance(model, MixtureConfig)
        experts_of = model if has_experts else None

        # Training reads them, and nobody those of samples that are drawn otherwise.
        in_training = (params.top_p, params.top_k) == (config.top_p, config.top_k)
        masks = config.sampling_masks and config.truncates and in_training

        def make_body(request: ResponseRequest, request_id: str) -> dict:
            return request_body(
                request,
                params,
                request_id=request_id,
                stop_id=self._tokenizer.eos_id,
                keyed_sampling=config.keyed_sampling,
                routed_experts=experts_of is not None,
                masks_of=model.vocab_size if masks else None,
            )

        return RequestPool(
            requests,
            [config.router_url] if config.router_url else self._publisher.urls,
            config,
            make_body=make_body,
            read_answer=partial(
                read_response,
                params=params,
                tokenizer=self._tokenizer,
                owner=self._publisher.owner,
                vocab_size=model.vocab_size,
                experts_of=experts_of,
                sampling_masks=masks,
            ),
            first_server=self._layout.dp_cp.rank,
            patience=max(1.0, params.max_response_tokens / config.max_response_tokens),
        )

    def _next(self, outcomes: queue.Queue[Outcome]) -> tuple[ResponseRequest, Rollout]:
        """The next response; the main rank looks after the servers now and then, however many
        responses others give meanwhile."""
        while True:
            try:
                outcome = outcomes.get(timeout=self._look_when_due())
            except queue.Empty:
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

    def _wait_for_other_leaders(self) -> None:
        """The main rank's servers may be lost while others still ask them."""
        leaders = self._layout.dp_cp
        if leaders.size == 1:
            return
        all_are_here = dist.barrier(group=leaders.group, async_op=True)
        while not all_are_here.is_completed():
            self._look_when_due()
            time.sleep(_POLL_S)
        all_are_here.wait()

    def _look_when_due(self) -> float:
        """Called while this leader waits. Returns: seconds until the next look is due."""
        left_s = self._looked_s + _LOOK_S - time.monotonic()
        if left_s > 0:
            return left_s
        failing = self._waits_for.take_failing() if self._waits_for is not None else {}
        if self._servers is not None:
            for text in posted(_FAILING) if self._layout.dp_cp.size > 1 else []:
                failing |= json.loads(text)
            self._servers.look_after(failing)
        elif not main_rank_answers():
            raise RuntimeError("the main rank, which looks after the servers, has ended")
        elif failing:
            post(_FAILING, json.dumps(failing))
        self._looked_s = time.monotonic()  # looking may take a while, on a shared file system
        return _LOOK_S

    @property
    def _num_restarts(self) -> int:
        return self._servers.num_restarts if self._servers is not None else 0


def _requests(prompts: Sequence[Prompt], params: SamplingParams) -> list[ResponseRequest]:
    return [
        ResponseRequest(index, prompt, sample)
        for index, prompt in enumerate(prompts)
        for sample in range(params.num_samples)
    ]
