"""Reward models as parts of the reward: what they say of rollouts, between sampling and learning.

R1 (arXiv:2501.12948v2) Eq. 10: general = reward model + format. They have the policy's architecture
and layout, wait in host memory, and are put into one shell in turn, on the trainer's own ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron_r1.config.reward import Reads, RewardConfig
from megatron_r1.data.scored_rows import scored_row, summary_of
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.models.policy import Policy
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.parallel.exchange import all_gather_objects
from megatron_r1.rewards.mix import add_part
from megatron_r1.trainers.forward_passes import row_scores
from megatron_r1.trainers.micro_batches import OnMicroBatch
from megatron_r1.types import Prompt, Rollout, ScoredGroup, TrainBatch, TrainRow


class RewardModels:
    """The models of `reward.models`."""

    def __init__(
        self, shell: Policy, bank: WeightBank, config: RewardConfig, tokenizer: Tokenizer
    ) -> None:
        """`bank`: sets of the shell's, named like the parts."""
        self._shell = shell
        self._bank = bank
        self._config = config
        self._tokenizer = tokenizer
        capacity = shell.layout.config.packable_tokens(shell.precision)
        self._max_tokens = min(capacity, shell.config.max_positions)

    def add_scores(
        self, scored: Sequence[ScoredGroup], *, step: int, on_micro_batch: OnMicroBatch | None
    ) -> list[ScoredGroup]:
        """The same groups with the parts that models give, each prompt by its data set's weights.

        Every rank of the job calls it, with its replica's groups.

        Args:
            step: updates that lie behind; a part that its schedule leaves out costs nothing.
        """
        scored = list(scored)
        for name in self._config.models:
            weights = [
                self._config.weights_at(group.group.prompt.dataset, step).get(name)
                for group in scored
            ]
            scored = self._with_part(name, scored, weights, on_micro_batch)
        return scored

    def _with_part(
        self,
        name: str,
        scored: list[ScoredGroup],
        weights: Sequence[float | None],
        on_micro_batch: OnMicroBatch | None,
    ) -> list[ScoredGroup]:
        layout, reads = self._shell.layout, self._config.reads[name]
        rows = [
            self._row(group.group.prompt, rollout, reads)
            for group, weight in zip(scored, weights, strict=True)
            if weight is not None
            for rollout in group.group.rollouts
        ]
        if not any(all_gather_objects(len(rows), layout.dp_cp)):
            return scored
        # Context ranks sample prompts of their own, and score those of all together.
        shared = all_gather_objects(rows, layout.cp)
        batch = TrainBatch(rows=tuple(row for part in shared for row in part))
        with self._bank.use(name):
            scores = row_scores(self._shell, batch, on_micro_batch=on_micro_batch).tolist()
        first = sum(len(part) for part in shared[: layout.cp.rank])
        own = iter(zip(rows, scores[first : first + len(rows)], strict=True))
        return [
            group
            if weight is None
            else _with_scores(group, name, weight, [next(own) for _ in group.rewards], reads)
            for group, weight in zip(scored, weights, strict=True)
        ]

    def _row(self, prompt: Prompt, rollout: Rollout, reads: Reads) -> TrainRow:
        return scored_row(
            prompt.token_ids, rollout.text, reads, self._tokenizer, max_tokens=self._max_tokens
        )


def _with_scores(
    group: ScoredGroup,
    name: str,
    weight: float,
    judged: Sequence[tuple[TrainRow, float]],
    reads: Reads,
) -> ScoredGroup:
    rewards = []
    for rollout, reward, (row, score) in zip(
        group.group.rollouts, group.rewards, judged, strict=True
    ):
        missing = reads is Reads.summary and not summary_of(rollout.text)
        what = "no summary" if missing else f"its {reads.value}"
        reason = f"model {name} on {what}, {row.num_tokens} tokens with the prompt"
        rewards.append(add_part(reward, name, score, reason, weight))
    return dataclasses.replace(group, rewards=tuple(rewards))
