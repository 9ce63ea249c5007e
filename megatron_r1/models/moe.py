"""Routers over packed streams: balance loss and load counts of its sequences, replayed choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from megatron_r1.models.stream import TokenStream

TopK = Callable[..., tuple[Tensor, Tensor]]
"""(scores, k, num_groups, group_topk) -> scores and indices of the best k."""


class StreamRouter(TopKRouter):
    """Megatron's router, with DeepSeek-V3's balance loss for each sequence of a packed stream, and
    with choices that the stream may bring.

    Megatron's own version takes the whole packed stream for one sequence, so that the loss would
    change with the packing; and what it replays knows nothing of pipelines and packed streams.
    """

    stream: TokenStream | None = None
    """The stream of the current forward pass; set by `StreamLayer`."""
    layer_in_model: int | None = None
    """From 0; None in prediction layers, which rollout engines do not run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.router_replay = _Replay(self)

    def replayed_tK(self) -> Tensor | None:
        """The stream's choices for the tokens that are routed here, -1 where it has none."""
        stream = self.stream  # None: routed by itself, outside of a pass
        if self.layer_in_model is None or stream is None or stream.routed_experts_TMK is None:
            return None
        return self._shard(self.stream.routed_experts_TMK)[:, self.layer_in_model].long()

    def _apply_seq_aux_loss(
        self,
        probs: Tensor,
        scores_for_aux_loss: Tensor,
        routing_map: Tensor,
        seq_length: int,
        bsz: int,
        with_padding_mask: bool = False,
    ) -> Tensor:
        """V3 report (arXiv:2412.19437) Eq. 17 to 20, averaged over the sequences of the whole step.

        Args:
            probs: [tokens, E]; carries the loss's gradient into the graph.
            scores_for_aux_loss: [tokens, E]; sigmoid scores normalised over experts, s' in Eq. 19.
            routing_map: [tokens, E]; bool, the top experts of each token.
        """
        stream = self.stream
        ids_t = self._shard(stream.sequence_ids_T)
        num_sequences, num_experts = stream.num_sequences, self.config.num_moe_experts
        lengths = (*stream.seq_lengths[:num_sequences], 1)  # the last row is for padding
        lengths_S1 = torch.tensor(lengths, device=ids_t.device)[:, None]
        load_SE = torch.zeros(len(lengths), num_experts, device=ids_t.device)
        load_SE.index_add_(0, ids_t, routing_map.float())
        if self.tp_cp_group.size() > 1:  # tokens of a sequence may lie on several ranks
            dist.all_reduce(load_SE, group=self.tp_cp_group)
        frequency_SE = load_SE * num_experts / (self.topk * lengths_S1)
        # This rank's part of the mean score; the ranks' losses add up to the whole.
        mean_score_SE = torch.zeros_like(load_SE).index_add(0, ids_t, scores_for_aux_loss.float())
        loss_S = (frequency_SE * mean_score_SE / lengths_S1).sum(dim=1)
        coefficient = self.get_aux_loss_coeff("seq_aux_loss") * stream.balance_scale
        return MoEAuxLossAutoScaler.apply(probs, coefficient * loss_S[:num_sequences].sum())

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> None:
        """Count the load of each expert over real tokens; Megatron moves the bias once a step."""
        if self.enable_expert_bias and torch.is_grad_enabled():
            is_token_t1 = self._shard(self.stream.is_token_T)[:, None]
            self.local_tokens_per_expert += (routing_map & is_token_t1).sum(dim=0)

    def _shard(self, x_T: Tensor) -> Tensor:
        """This rank's part of the stream under sequence parallelism."""
        if not self.config.sequence_parallel:
            return x_T
        return x_T.chunk(self.tp_group.size())[self.tp_group.rank()]


class _Replay:
    """What Megatron asks, in the place of its own, which experts are the best."""

    def __init__(self, router: StreamRouter) -> None:
        self._router = router

    def get_replay_topk(
        self,
        scores_tE: Tensor,
        topk: int,
        num_groups: int | None,
        group_topk: int | None,
        compute: TopK,
    ) -> tuple[Tensor, Tensor]:
        """The stream's experts under this router's scores, so that they have a gradient."""
        best_tK, index_tK = compute(scores_tE, topk, num_groups=num_groups, group_topk=group_topk)
        replayed_tK = self._router.replayed_tK()
        if replayed_tK is None:
            return best_tK, index_tK
        index_tK = torch.where(replayed_tK >= 0, replayed_tK, index_tK)
        return scores_tE.gather(1, index_tK), index_tK


class StreamLayer(TransformerLayer):
    """A transformer layer that tells its router which stream it routes."""

    def forward(self, *args: Any, packed_seq_params: TokenStream, **kwargs: Any) -> Any:
        router = getattr(self.mlp, "router", None)
        if router is not None:
            router.stream = packed_seq_params
        return super().forward(*args, packed_seq_params=packed_seq_params, **kwargs)


def number_routers(chunk: GPTModel, *, first_layer: int) -> None:
    """Tell the routers of a chunk which layers of the whole model theirs are."""
    for number, layer in enumerate(chunk.decoder.layers, start=first_layer):
        router = getattr(layer.mlp, "router", None)
        if router is not None:
            router.layer_in_model = number
