"""The attention between queries, keys and values: causal, and each sequence of a stream alone.

    T tokens of the stream     H heads of this rank       S x L sequences as a padded rectangle
    K query and key width      G key heads of this rank   V value width

By PyTorch, on any device; `packed_attention.py` has it by Transformer Engine. Megatron's attention
modules build one of the two as their `core_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_r1.models.stream import TokenStream


class PlainAttention(torch.nn.Module):
    """`causal_attention` of some softmax scale."""

    def __init__(self, *, softmax_scale: float | None = None, **unused: Any) -> None:
        """
        Args:
            softmax_scale: None is K ** -0.5.
        """
        super().__init__()
        self._scale = softmax_scale

    def forward(self, q_THK: Tensor, k_TGK: Tensor, v_TGV: Tensor, stream: TokenStream) -> Tensor:
        """As `causal_attention`."""
        return causal_attention(q_THK, k_TGK, v_TGV, stream, scale=self._scale)


def causal_attention(
    q_THK: Tensor, k_TGK: Tensor, v_TGV: Tensor, stream: TokenStream, *, scale: float | None
) -> Tensor:
    """Block-diagonal causal attention: each token sees itself and the earlier ones of its sequence.

    Sequences of like length are attended side by side as rectangles padded on the right, where the
    causal mask already hides the padding from every real token. Under context parallelism each rank
    gathers all keys and values and attends from its own tokens.

    Args:
        k_TGK, v_TGV: H is a multiple of G; consecutive heads share a key.
        scale: of queries times keys; None is K ** -0.5.
    Returns: [T, H, V].
    """
    value_width = v_TGV.shape[-1]
    if value_width < k_TGK.shape[-1]:
        # The fused kernels want one width for keys and values; zeros add nothing to the output.
        v_TGV = F.pad(v_TGV, (0, k_TGK.shape[-1] - value_width))
    if stream.context is not None:
        k_TGK, v_TGV = (stream.context.join(x, sum_gradients=True) for x in (k_TGK, v_TGV))
    repeats = q_THK.shape[1] // k_TGK.shape[1]
    if repeats > 1:
        k_TGK, v_TGV = (x.repeat_interleave(repeats, dim=1) for x in (k_TGK, v_TGV))
    parts = []
    for each in stream.length_classes:
        out_SHQV = F.scaled_dot_product_attention(
            _rectangle(q_THK, each.queries.index_SL),
            _rectangle(k_TGK, each.keys.index_SL),
            _rectangle(v_TGV, each.keys.index_SL),
            attn_mask=None if each.mask_SQL is None else each.mask_SQL[:, None],
            is_causal=each.mask_SQL is None,
            scale=scale,
        )
        parts.append(out_SHQV.transpose(1, 2).flatten(0, 1))
    out_THV = torch.cat(parts).index_select(0, stream.cells_T)
    # Tokens of no sequence, which fill up a context rank's part, come last.
    num_fill = q_THK.shape[0] - out_THV.shape[0]
    if num_fill > 0:
        out_THV = F.pad(out_THV, (0, 0, 0, 0, 0, num_fill))
    return out_THV[..., :value_width]


def _rectangle(x_THK: Tensor, index_SL: Tensor) -> Tensor:
    """[S, H, L, K]: the tokens of each cell."""
    cells = x_THK.index_select(0, index_SL.flatten())
    return cells.unflatten(0, index_SL.shape).transpose(1, 2)
