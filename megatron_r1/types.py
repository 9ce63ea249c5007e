"""The nouns of the system: Prompt -> RolloutGroup -> ScoredGroup -> TrainBatch -> StepResult.

Every arrow between them is one call in `trainers/rl.py`. All are frozen: a later step returns a new
value. Tensor names end in their logical dimensions:

    P prompts in a step      L prompt + response          V vocabulary     E experts
    G rollouts per prompt    T packed tokens, micro-batch D model width    H heads
    N rollouts, P * G, prompt-major: row n = p * G + g    F FFN width      K head width

A lower-case letter is this rank's shard: `logits_Tv` has V / TP columns. Per-token tensors are
token-aligned: column t describes token t; the first token of a sequence has no probability, is
masked and holds 0. Log-probabilities and KL are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # reward workers import this module, and need no torch
    import numpy as np
    from torch import Tensor


class FinishReason(Enum):
    """Why a rollout ended."""

    stop = "stop"
    """The policy sampled a stop token, which is part of the response."""
    length = "length"
    """The response reached `rollout.max_response_tokens`: it is truncated."""


@dataclass(frozen=True)
class Prompt:
    """One question, rendered and tokenised, with what its grader needs.

    The policy sees `token_ids` and nothing else. `answer` and `grader_data` are read by rewards
    only.
    """

    id: str
    """Stable name of the problem, e.g. ``chain_sum/train/17``; the same problem keeps it for ever.
    """
    draw: int
    """Position in the run's order of prompts. Keys the sampler, so that the second epoch differs.
    """
    question: str
    text: str
    """The question inside its template; `token_ids` is its tokenisation."""
    token_ids: tuple[int, ...]
    answer: str
    """Reference answer."""
    grader: str
    """Which checker judges it: ``reasoning_gym:<task>``, ``math``, ``exact``, ``choice`` or
    ``code``."""
    grader_data: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able extras of the checker."""
    dataset: str = ""
    """Where `reward.mixes` has this name, its weights apply."""
    language: str | None = None
    """ISO 639-1; what the reasoning should be written in. None: the question's language."""


@dataclass(frozen=True)
class VersionSpan:
    """Response tokens `start` to `stop` - 1 were sampled by the policy after `version` updates."""

    version: int
    start: int
    stop: int


@dataclass(frozen=True)
class Rollout:
    """One sampled response, with the engine's own numbers. Text is never tokenised again."""

    sample: int
    """g, from 0 to G - 1."""
    token_ids: tuple[int, ...]
    """Response tokens, the stop token included where there is one."""
    logprobs: tuple[float, ...]
    """Nats, one per response token, under the temperature (not top-p or top-k) it was drawn with.
    """
    finish_reason: FinishReason
    weight_version: int
    """Updates the policy had seen when the response was sampled; its last token, if that changed.
    """
    text: str
    """Response without special stop tokens, as the graders read it."""
    version_spans: tuple[VersionSpan, ...] = ()
    """Where weights were published while it was sampled; empty: one version sampled all."""
    kept_tokens: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False)
    """Where asked for: the tokens that top-p and top-k left to choose each token from, and
    `logprobs` are among them."""
    routed_experts: np.ndarray | None = field(default=None, compare=False, repr=False)
    """int32, [prompt + response - 1, layers, experts of a token]: row t is of the pass over token
    t, shared experts not counted, and zero in dense layers. None where it was not asked for."""


def spans(rollout: Rollout) -> tuple[VersionSpan, ...]:
    """Which version sampled which tokens, all of them."""
    whole = VersionSpan(rollout.weight_version, 0, len(rollout.token_ids))
    return rollout.version_spans or (whole,)


@dataclass(frozen=True)
class RolloutGroup:
    """All G responses to one prompt. A group stays whole, with one data-parallel leader."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class Reward:
    """A total, the parts that make it up, and why each part is what it is."""

    total: float
    parts: Mapping[str, float]
    """Unweighted value of each part, e.g. ``{"accuracy": 1.0, "format": 0.0}``."""
    reasons: Mapping[str, str]
    """One line for each part."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """What each part counted: the total is the sum of weight x value."""


@dataclass(frozen=True)
class ScoredGroup:
    """A group with one `Reward` per rollout, in the same order."""

    group: RolloutGroup
    rewards: tuple[Reward, ...]


@dataclass(frozen=True)
class TrainRow:
    """One sequence to learn from: prompt and response, token-aligned.

    Supervised training needs `tokens_L` and `loss_mask_L` alone; who fills the rest says so.
    """

    tokens_L: Tensor
    """int64."""
    loss_mask_L: Tensor
    """bool; True where the loss is taken (RL: the tokens that the policy sampled)."""
    group: int = 0
    """`Prompt.draw`, which the rows of one group share."""
    advantage: float = 0.0
    advantages_L: Tensor | None = None
    """Where the tokens of a row differ in it, in the place of `advantage`; float32."""
    label: float = 0.0
    """What a row's score is trained towards: 1 safe, 0 unsafe; both rows of a pair have its margin.
    """
    weight: float = 0.0
    """Share of each trainable token of this row in the step's loss; see `algos/reduce.py`."""
    logprobs_rollout_L: Tensor | None = None
    """What the engine reported; float32."""
    logprobs_old_L: Tensor | None = None
    """The trainer's own value at the version that sampled; float32. None in all rows of a batch: no
    update lies between the two, and the value is `logprobs` without its gradient."""
    logprobs_ref_L: Tensor | None = None
    """The reference policy's; float32."""
    kept_counts_L: Tensor | None = None
    """How many tokens top-p and top-k left where each token was drawn; 0: all. int64."""
    kept_ids_J: Tensor | None = None
    """Which, end to end; int64."""
    routed_experts_LMK: Tensor | None = None
    """Which K experts the engine sent each token to in each of its M layers; int16, -1 for the last
    token, whose pass it never made. Zero in dense layers. None: not known."""
    values_old_L: Tensor | None = None
    """The critic's, of the state in which each token was chosen, before its first update on this
    phase; float32."""
    returns_L: Tensor | None = None
    """What the critic should have said there; float32."""
    teacher_logits_Lv: Tensor | None = None
    """A teacher's, of the token after each, this tensor rank's columns; in the teacher's type."""

    @property
    def num_tokens(self) -> int:
        return self.tokens_L.numel()


@dataclass(frozen=True)
class TrainBatch:
    """Rows of this data-parallel replica for one update or one forward pass."""

    rows: tuple[TrainRow, ...]
    rows_together: int = 1
    """This many rows after one another stay in one micro-batch: 2 where they are pairs."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows packed end to end into one stream of T tokens, for one forward pass.

    Attention is causal inside each sequence and blind across them. Padding, where a layout needs T
    to be divisible, comes last, forms a sequence of its own and has weight 0.
    """

    tokens_T: Tensor
    """int64."""
    positions_T: Tensor
    """int64; 0 at the first token of each sequence."""
    seq_lengths: tuple[int, ...]
    """Lengths of the sequences, padding's included; they add up to T."""
    num_padding: int
    """Tokens of the last sequence that are padding: all of it, or 0."""
    loss_mask_T: Tensor
    weights_T: Tensor
    """float32; each token's share in the step's loss, 0 where `loss_mask_T` is False."""
    advantages_T: Tensor
    labels_T: Tensor
    """float32; each row's label at all of its tokens."""
    logprobs_rollout_T: Tensor
    logprobs_old_T: Tensor | None
    """None until the forward pass of the update has given them; see `TrainRow`."""
    logprobs_ref_T: Tensor
    values_old_T: Tensor
    returns_T: Tensor
    teacher_logits_Tv: Tensor | None = None
    """None where no row has any."""
    kept_counts_T: Tensor | None = None
    """int64; None where no row has any. See `TrainRow`."""
    kept_ids_J: Tensor | None = None
    routed_experts_TMK: Tensor | None = None
    """int16, -1 where it is not known; None where no row has any. See `TrainRow`."""


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns: a scalar to minimise and metrics that add up over micro-batches and
    ranks.

    A metric is ``(numerator, denominator)``; both are summed over the step, then divided. Of one
    whose name ends in ``_max`` the largest numerator is taken.
    """

    loss: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank."""

    metrics: Mapping[str, float]
    """``train/loss``, ``train/grad_norm``, ``train/lr``, ``train/tokens`` and the loss's own."""
    skipped: bool
    """True when the policy was not changed: the gradient was not finite, no rollout could teach, or
    its critic alone learned."""
