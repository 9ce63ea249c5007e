"""Attention over packed sequences: against a loop, and blind across sequences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_r1.models.core_attention import causal_attention
from megatron_r1.models.stream import Rectangle, group_by_length
from tests.models.builders import logits_of, random_tokens, stream_of
from tests.models.families import FAMILIES, load_family


def attend_token_by_token(q: Tensor, k: Tensor, v: Tensor, lengths, scale: float) -> Tensor:
    """softmax(scale q_t K) V over a sequence's tokens up to t, one token and head at a time."""
    out = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype)
    start = 0
    for length in lengths:
        for t in range(start, start + length):
            for head in range(q.shape[1]):
                scores = scale * k[start : t + 1, head] @ q[t, head]
                out[t, head] = scores.softmax(dim=0) @ v[start : t + 1, head]
        start += length
    return out


@pytest.mark.parametrize("lengths", [(1,), (6,), (1, 1, 1), (7, 1, 30, 29, 2), (5, 0, 4)])
@pytest.mark.parametrize(("key_width", "value_width"), [(16, 16), (24, 16)])
def test_attention_is_a_loop_over_sequences_and_tokens(lengths, key_width, value_width):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), 3, width, generator=generator, dtype=torch.float64)
        for width in (key_width, key_width, value_width)
    )
    out = causal_attention(q, k, v, stream_of(lengths), scale=0.3)
    torch.testing.assert_close(
        out, attend_token_by_token(q, k, v, lengths, 0.3), rtol=1e-12, atol=1e-12
    )


def test_equal_scores_average_what_a_token_may_see():
    q = k = torch.zeros(5, 1, 2)
    v = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0]).reshape(5, 1, 1)
    out = causal_attention(q, k, v, stream_of([3, 2]), scale=1.0)
    # 1, (1 + 2) / 2, (1 + 2 + 6) / 3; then a sequence of its own: 10, (10 + 20) / 2
    assert out.flatten().tolist() == [1.0, 1.5, 3.0, 10.0, 15.0]


def test_rectangles_by_hand():
    # 8, 7 and 4 fill 19 of 3 x 8 = 24 cells, 79 %; a fourth row of 2 would leave 21 of 32, 66 %.
    lengths = [4, 8, 2, 7]
    groups = group_by_length(lengths, waste_frac=0.25)
    assert groups == [[1, 3, 0], [2]]
    first, second = (Rectangle.of(group, lengths, torch.device("cpu")) for group in groups)
    assert first.valid_SL.sum(dim=1).tolist() == [8, 7, 4]
    # Sequences start at 0, 4, 12 and 14. Padding repeats the last token.
    assert first.index_SL[2].tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    assert second.index_SL.tolist() == [[12, 13]]


@pytest.mark.parametrize("waste_frac", [0.0, 0.1, 0.25])
def test_every_token_is_in_one_rectangle_and_padding_keeps_its_bound(waste_frac):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 60, (40,), generator=generator).tolist()
    groups = group_by_length(lengths, waste_frac=waste_frac)
    classes = [Rectangle.of(group, lengths, torch.device("cpu")) for group in groups]
    placed = torch.cat([c.index_SL[c.valid_SL] for c in classes])
    assert sorted(placed.tolist()) == list(range(sum(lengths)))
    for c in classes:
        assert c.valid_SL.float().mean() >= 1 - waste_frac - 1e-6


@pytest.mark.megatron
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_token_reaches_later_tokens_of_its_own_sequence_alone(name, one_rank):
    policy = one_rank.policy(load_family(name))
    lengths, changed = (9, 30, 9), 20
    tokens_T = random_tokens(sum(lengths))
    others_T = tokens_T.clone()
    others_T[changed] = (tokens_T[changed] + 1) % 512
    before_TV, after_TV = (logits_of(policy, t, lengths) for t in (tokens_T, others_T))
    gap_T = (before_TV - after_TV).abs().amax(dim=1) / before_TV.abs().max()
    # Token 20 is the twelfth of the sequence in columns 9 to 38. Elsewhere experts meet other
    # numbers of tokens, and their products are rounded otherwise, by float32's last digits.
    assert gap_T[:changed].max() < 1e-6 and gap_T[39:].max() < 1e-6
    assert gap_T[changed:39].min() > 1e-4


@pytest.mark.megatron
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_sequence_has_the_same_logits_alone_and_packed(name, one_rank):
    policy = one_rank.policy(load_family(name))
    lengths = (9, 1, 30)
    tokens_T = random_tokens(sum(lengths))
    packed_TV = logits_of(policy, tokens_T, lengths)
    alone_TV = torch.cat([logits_of(policy, t, [t.numel()]) for t in tokens_T.split(lengths)])
    assert (packed_TV - alone_TV).abs().max() < 1e-5 * alone_TV.abs().max()
