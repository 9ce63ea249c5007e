"""The policy's own ranks decode, in whatever layout they train.

Logits are computed on the last pipeline stage; tokens are drawn there, on every tensor rank alike,
and broadcast to the other stages, so that all ranks of a replica keep the same `DecodeBatch` and
none decides anything alone. Replicas decode their own prompts; where experts tie their forward
passes together, all keep step until the last has finished.

One iteration is one forward pass: a prefill of waiting prompts when there is room for their
samples, otherwise one token for every running response.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.models.kv_cache import KvCache
from megatron_r1.models.policy import Policy
from megatron_r1.models.stream import TokenStream
from megatron_r1.rollout.decode_batch import DecodeBatch, EndedResponse
from megatron_r1.rollout.engine import OnProgress, SamplingParams, check_context
from megatron_r1.rollout.sampling import sample_tokens
from megatron_r1.types import Prompt, Rollout, RolloutGroup


class InProcessEngine:
    """A `RolloutEngine` on the trainer's own weights: nothing to publish."""

    def __init__(
        self, policy: Policy, tokenizer: Tokenizer, *, max_batch: int, max_prefill_tokens: int
    ) -> None:
        self._policy = policy
        self._tokenizer = tokenizer
        self._max_batch = max_batch
        self._max_prefill_tokens = max_prefill_tokens

    def publish(self, version: int) -> Mapping[str, float]:
        return {}

    def start_ahead(self, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        raise AssertionError("the configuration refuses rollout.steps_ahead here")

    @property
    def metrics(self) -> Mapping[str, tuple[float, float]]:
        return {}

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        weight_version: int,
        on_progress: OnProgress | None = None,
    ) -> Iterator[RolloutGroup]:
        """Yield this replica's groups. Every rank of the job must iterate to the end, in step.

        Between two groups the caller is in inference mode: no gradients, model in evaluation.
        """
        check_context(prompts, params, self._policy.config.max_positions)
        batch = DecodeBatch(
            prompts,
            num_samples=params.num_samples,
            max_response_tokens=params.max_response_tokens,
            max_batch=self._max_batch,
            num_padding_rows=self._policy.stream_multiple,
            stop_id=self._tokenizer.eos_id,
            seed=params.seed,
        )
        decoder = _Decoder(self._policy, batch, params)
        groups = _GroupBuilder(prompts, params.num_samples, self._tokenizer, weight_version)
        with self._policy.inference():
            while _someone_is_busy(self._policy, not batch.is_done):
                if batch.is_done:
                    decoder.keep_step()
                    continue
                if batch.should_prefill:
                    decoder.prefill(self._max_prefill_tokens)
                else:
                    decoder.decode()
                for response in decoder.take_ended():
                    group = groups.add(response)
                    if group is not None:
                        yield group
                if on_progress is not None:
                    on_progress(groups.num_responses, groups.num_tokens + batch.num_drawn)


def _someone_is_busy(policy: Policy, busy: bool) -> bool:
    """Whether this rank, or one whose forward passes are tied to this rank's, has work left."""
    if not policy.layout.replicas_step_together:
        return busy
    flag = torch.tensor([int(busy)], device=policy.host.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


class _Decoder:
    """Runs the model for a `DecodeBatch` and moves its cache rows."""

    def __init__(self, policy: Policy, batch: DecodeBatch, params: SamplingParams) -> None:
        self._policy = policy
        self._batch = batch
        self._params = params
        self._cache: KvCache = policy.new_cache(
            num_rows=batch.num_rows, max_context=batch.max_context
        )
        self._first_logits: dict[int, Tensor] = {}
        """Logits after the prompt of each ready row; last stage only."""
        self._ended: list[EndedResponse] = []

    def take_ended(self) -> list[EndedResponse]:
        """Responses that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def prefill(self, max_tokens: int) -> None:
        """Run waiting prompts through the model, then start their samples."""
        prompts, rows = self._batch.take_prompts(max_tokens)
        tokens_T, stream = self._prompt_stream(prompts, rows)
        logits_TV = self._forward(tokens_T, stream)
        if logits_TV is not None:
            ends = np.cumsum([len(p.token_ids) for p in prompts]) - 1
            for row, end in zip(rows, ends.tolist(), strict=True):
                self._first_logits[row] = logits_TV[end].clone()
        self._start()

    def decode(self) -> None:
        """One token for every running response, then start others in the rows that were freed."""
        tokens_T, stream = self._newest_stream()
        logits_TV = self._forward(tokens_T, stream)
        rows = slice(0, self._batch.num_running)
        self._draw(rows, None if logits_TV is None else logits_TV[rows])
        self._start()

    def keep_step(self) -> None:
        """A pass over padding, for the sake of experts that other replicas' tokens visit here."""
        self._forward(*self._stream([], [], []))

    def _start(self) -> None:
        """Start waiting samples while rows are free; each draws its first token at once."""
        while True:
            rows, sources = self._batch.start_responses()
            if not sources:
                return
            self._copy(sources, list(range(rows.start, rows.stop)))
            logits_NV = None
            if self._policy.layout.is_last_stage:
                logits_NV = torch.stack([self._first_logits[source] for source in sources])
            self._draw(rows, logits_NV)

    def _draw(self, rows: slice, logits_NV: Tensor | None) -> None:
        """Draw the next token of some rows and retire those that end with it."""
        tokens_N, logprobs_N = self._sample(rows, logits_NV)
        ended = self._batch.accept(rows, tokens_N, logprobs_N)
        if ended:
            responses, sources, targets = self._batch.retire(ended)
            self._copy(sources, targets)
            self._ended += responses

    def _copy(self, sources: list[int], targets: list[int]) -> None:
        if sources:
            device = self._policy.host.device
            as_index = torch.tensor([sources, targets], device=device)
            self._cache.copy_rows(as_index[0], as_index[1], self._batch.max_context)

    def _sample(self, rows: slice, logits_NV: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log-probabilities, the same on every rank of the replica."""
        layout, device = self._policy.layout, self._policy.host.device
        if logits_NV is not None:
            tokens_N, logprobs_N = sample_tokens(
                logits_NV,
                torch.from_numpy(self._batch.uniforms(rows)).to(device),
                temperature=self._params.temperature,
                top_p=self._params.top_p,
                top_k=self._params.top_k,
            )
            # A float64 holds token ids and float32 log-probabilities exactly.
            drawn_2N = torch.stack((tokens_N.double(), logprobs_N.double()))
        else:
            drawn_2N = torch.empty(2, rows.stop - rows.start, dtype=torch.float64, device=device)
        if layout.pp.size > 1:
            last = dist.get_global_rank(layout.pp.group, layout.pp.size - 1)
            dist.broadcast(drawn_2N, src=last, group=layout.pp.group)
        tokens_N, logprobs_N = drawn_2N.cpu().numpy()
        return tokens_N.astype(np.int64), logprobs_N

    def _prompt_stream(
        self, prompts: Sequence[Prompt], rows: Sequence[int]
    ) -> tuple[Tensor, TokenStream]:
        tokens = [token for prompt in prompts for token in prompt.token_ids]
        lengths = [len(prompt.token_ids) for prompt in prompts]
        return self._stream(tokens, lengths, np.repeat(rows, lengths).tolist())

    def _stream(
        self, tokens: list[int], lengths: list[int], cache_rows: list[int]
    ) -> tuple[Tensor, TokenStream]:
        """Sequences from position 0, with padding up to what the layout needs."""
        multiple = self._policy.stream_multiple
        num_padding = -len(tokens) % multiple if tokens else multiple
        if num_padding:
            tokens = tokens + [0] * num_padding
            lengths = lengths + [num_padding]
            cache_rows = cache_rows + [self._batch.max_batch] * num_padding
        device = self._policy.host.device
        return torch.tensor(tokens, device=device), TokenStream(
            positions_T=torch.cat([torch.arange(n, device=device) for n in lengths]),
            seq_lengths=tuple(lengths),
            num_padding=num_padding,
            cache=self._cache,
            cache_rows_T=torch.tensor(cache_rows, device=device),
        )

    def _newest_stream(self) -> tuple[Tensor, TokenStream]:
        """The newest token of every running response; padding tokens write to the rows behind."""
        tokens_N, positions_N = self._batch.newest()
        num_padding = -len(tokens_N) % self._policy.stream_multiple
        tokens_T = np.pad(tokens_N, (0, num_padding))
        device = self._policy.host.device
        return torch.from_numpy(tokens_T).to(device), TokenStream(
            positions_T=torch.from_numpy(np.pad(positions_N, (0, num_padding))).to(device),
            seq_lengths=(1,) * len(tokens_T),
            num_padding=num_padding,
            cache=self._cache,
            cache_rows_T=torch.arange(len(tokens_T), device=device),
            decoding=True,
            max_context=int(positions_N.max()) + 1,
        )

    def _forward(self, tokens_T: Tensor, stream: TokenStream) -> Tensor | None:
        """One pass through all chunks of the pipeline: logits, [T, V], on the last stage; None
        before it."""
        policy, pp = self._policy, self._policy.layout.pp
        before = dist.get_global_rank(pp.group, (pp.rank - 1) % pp.size)
        behind = dist.get_global_rank(pp.group, (pp.rank + 1) % pp.size)
        for chunk in policy.chunks:
            if not chunk.pre_process:
                num_tokens = tokens_T.numel() // policy.layout.config.sequence_parts
                shape = (num_tokens, 1, policy.config.hidden_size)
                hidden = torch.empty(shape, dtype=policy.dtype, device=policy.host.device)
                dist.recv(hidden, src=before, group=pp.group)
                chunk.set_input_tensor(hidden)
            output = policy.forward(tokens_T, stream, chunk=chunk, gather_vocab=True)
            if chunk.post_process:
                return output[:, : policy.config.vocab_size]  # without padding columns
            dist.send(output, dst=behind, group=pp.group)
        return None


class _GroupBuilder:
    """Collects responses until their prompt has all of its samples."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        tokenizer: Tokenizer,
        weight_version: int,
    ) -> None:
        self._prompts = prompts
        self._num_samples = num_samples
        self._tokenizer = tokenizer
        self._weight_version = weight_version
        self._rollouts: dict[int, list[Rollout]] = {}
        self.num_responses = 0
        self.num_tokens = 0

    def add(self, response: EndedResponse) -> RolloutGroup | None:
        """Take one response; return its group when it was the last."""
        self.num_responses += 1
        self.num_tokens += len(response.token_ids)
        rollouts = self._rollouts.setdefault(response.prompt_index, [])
        rollouts.append(
            Rollout(
                sample=response.sample,
                token_ids=response.token_ids,
                logprobs=response.logprobs,
                finish_reason=response.finish_reason,
                weight_version=self._weight_version,
                text=self._tokenizer.decode(response.token_ids),
            )
        )
        if len(rollouts) < self._num_samples:
            return None
        del self._rollouts[response.prompt_index]
        by_sample = tuple(sorted(rollouts, key=lambda rollout: rollout.sample))
        return RolloutGroup(prompt=self._prompts[response.prompt_index], rollouts=by_sample)
