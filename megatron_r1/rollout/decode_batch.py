"""Which response is in which cache row: the scheduling state of in-process decoding, without a
model.

Every rank of a replica keeps the same copy. Cache rows are, in this order:

    running    0 .. max_batch - 1; responses that are being sampled, always the first n of them
    padding    what a stream needs to be divisible by the tensor ranks, written and never read
    ready      one for each prompt that is prefilled and has samples left to start

A prompt goes unfilled -> ready (prefilled once) -> its G samples are started as running rows free
up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_r1.rollout.sampling import stream_key, uniforms
from megatron_r1.types import FinishReason, Prompt


@dataclass(frozen=True)
class EndedResponse:
    """What one response drew."""

    prompt_index: int
    sample: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass
class _ReadyPrompt:
    prompt_index: int
    row: int
    samples: deque[int] = field(default_factory=deque)


@dataclass(frozen=True)
class _Running:
    prompt_index: int
    sample: int


class DecodeBatch:
    """Admits, advances and retires responses; pure bookkeeping over numpy arrays."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        max_response_tokens: int,
        max_batch: int,
        num_padding_rows: int,
        stop_id: int,
        seed: int,
    ) -> None:
        self._prompts = prompts
        self._num_samples = num_samples
        self._max_response_tokens = max_response_tokens
        self._stop_id = stop_id
        self._seed = seed
        self.max_batch = max(1, min(max_batch, len(prompts) * num_samples))
        self.num_ready_rows = max(1, min(len(prompts), self.max_batch // num_samples + 1))
        self.first_ready_row = self.max_batch + num_padding_rows
        self._unfilled = deque(range(len(prompts)))
        self._ready: deque[_ReadyPrompt] = deque()
        self._free_ready_rows = deque(range(self.first_ready_row, self.num_rows))
        self._running: list[_Running] = []
        # By running row:
        self._keys_N = np.zeros(self.max_batch, dtype=np.uint64)
        self._prompt_lengths_N = np.zeros(self.max_batch, dtype=np.int64)
        self._drawn_N = np.zeros(self.max_batch, dtype=np.int64)
        self._tokens_NL = np.zeros((self.max_batch, max_response_tokens), dtype=np.int64)
        self._logprobs_NL = np.zeros((self.max_batch, max_response_tokens), dtype=np.float32)

    @property
    def num_rows(self) -> int:
        return self.first_ready_row + self.num_ready_rows

    @property
    def max_context(self) -> int:
        """Columns that the cache needs. The last token drawn is never fed back."""
        longest = max((len(p.token_ids) for p in self._prompts), default=1)
        return longest + self._max_response_tokens - 1

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_drawn(self) -> int:
        """Tokens drawn so far by running responses."""
        return int(self._drawn_N[: self.num_running].sum())

    @property
    def is_done(self) -> bool:
        return not (self._running or self._ready or self._unfilled)

    @property
    def should_prefill(self) -> bool:
        """Prefill when a whole group could start, or when there is nothing else to do."""
        if not self._unfilled or self._ready:
            return False
        free = self.max_batch - self.num_running
        return free >= self._num_samples or not self._running

    def take_prompts(self, max_tokens: int) -> tuple[list[Prompt], list[int]]:
        """The next prompts to prefill, at most `max_tokens` of them together but at least one, and
        the ready rows that they get."""
        prompts: list[Prompt] = []
        rows: list[int] = []
        free = self.max_batch - self.num_running
        budget = max_tokens
        while self._unfilled and self._free_ready_rows:
            prompt = self._prompts[self._unfilled[0]]
            budget -= len(prompt.token_ids)
            if prompts and (budget < 0 or len(prompts) * self._num_samples >= free):
                break
            index, row = self._unfilled.popleft(), self._free_ready_rows.popleft()
            self._ready.append(_ReadyPrompt(index, row, deque(range(self._num_samples))))
            prompts.append(prompt)
            rows.append(row)
        return prompts, rows

    def start_responses(self) -> tuple[slice, list[int]]:
        """Start waiting samples in the rows behind the running ones.

        Returns: those rows, and for each the ready row that its context is to be copied from.
        """
        first = self.num_running
        sources: list[int] = []
        while self._ready and self.num_running < self.max_batch:
            ready = self._ready[0]
            row, sample = self.num_running, ready.samples.popleft()
            prompt = self._prompts[ready.prompt_index]
            self._running.append(_Running(ready.prompt_index, sample))
            self._keys_N[row] = stream_key(self._seed, prompt.draw, sample)
            self._prompt_lengths_N[row] = len(prompt.token_ids)
            self._drawn_N[row] = 0
            sources.append(ready.row)
            if not ready.samples:
                self._ready.popleft()
                self._free_ready_rows.append(ready.row)
        return slice(first, self.num_running), sources

    def uniforms(self, rows: slice) -> np.ndarray:
        """Random number of each row's next draw, keyed by seed, prompt, sample, position."""
        return uniforms(self._keys_N[rows], self._drawn_N[rows])

    def newest(self) -> tuple[np.ndarray, np.ndarray]:
        """Last token of each running response, and its position in prompt and response together."""
        n = self.num_running
        drawn_N = self._drawn_N[:n]
        return self._tokens_NL[np.arange(n), drawn_N - 1], self._prompt_lengths_N[:n] + drawn_N - 1

    def accept(self, rows: slice, tokens_N: np.ndarray, logprobs_N: np.ndarray) -> list[int]:
        """Append one token to each of these rows. Returns the rows that ended with it."""
        index_N = np.arange(rows.start, rows.stop)
        drawn_N = self._drawn_N[rows]
        self._tokens_NL[index_N, drawn_N] = tokens_N
        self._logprobs_NL[index_N, drawn_N] = logprobs_N
        self._drawn_N[rows] += 1
        ended_N = (tokens_N == self._stop_id) | (self._drawn_N[rows] == self._max_response_tokens)
        return index_N[ended_N].tolist()

    def retire(self, ended: Sequence[int]) -> tuple[list[EndedResponse], list[int], list[int]]:
        """Take ended rows out and close the gaps with the last running rows.

        Returns: the responses, and for the cache the rows to copy from and to.
        """
        responses = [self._response(row) for row in ended]
        num_left = self.num_running - len(ended)
        gone = set(ended)
        targets = [row for row in ended if row < num_left]
        sources = [row for row in range(num_left, self.num_running) if row not in gone]
        for source, target in zip(sources, targets, strict=True):
            self._running[target] = self._running[source]
        for array in (self._keys_N, self._prompt_lengths_N, self._drawn_N):
            array[targets] = array[sources]
        for array in (self._tokens_NL, self._logprobs_NL):
            array[targets] = array[sources]
        del self._running[num_left:]
        return responses, sources, targets

    def _response(self, row: int) -> EndedResponse:
        length = int(self._drawn_N[row])
        tokens = self._tokens_NL[row, :length]
        stopped = tokens[-1] == self._stop_id
        return EndedResponse(
            prompt_index=self._running[row].prompt_index,
            sample=self._running[row].sample,
            token_ids=tuple(tokens.tolist()),
            logprobs=tuple(self._logprobs_NL[row, :length].tolist()),
            finish_reason=FinishReason.stop if stopped else FinishReason.length,
        )
